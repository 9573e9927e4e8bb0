"""The private schema: names, text format, JSON, and that nothing brings tensorflow along."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfserve_kit import protos
from tfserve_kit.protos import METHODS, TextFormatError, from_json, from_text, to_json, to_text

PLATFORM_CONFIG = """
platform_configs {
  key: "tensorflow"
  value {
    source_adapter_config {
      [type.googleapis.com/tensorflow.serving.SavedModelBundleSourceAdapterConfig] {
        legacy_config { enable_model_warmup: true }
      }
    }
  }
}
"""


@pytest.mark.parametrize(
    ("name", "full_name"),
    [
        ("PredictRequest", "tensorflow.serving.PredictRequest"),
        ("TensorProto", "tensorflow.TensorProto"),
        ("Int64Value", "google.protobuf.Int64Value"),
        ("tensorflow.serving.ModelSpec", "tensorflow.serving.ModelSpec"),
        ("tensorflow.SavedModel", "tensorflow.SavedModel"),
        (
            "FileSystemStoragePathSourceConfig.ServableVersionPolicy",
            "tensorflow.serving.FileSystemStoragePathSourceConfig.ServableVersionPolicy",
        ),
    ],
)
def test_message_is_found_by_short_and_full_name(name, full_name):
    assert protos.message_class(name).DESCRIPTOR.full_name == full_name


def test_message_is_an_attribute_and_always_the_same_class():
    assert protos.PredictRequest is protos.message_class("tensorflow.serving.PredictRequest")


def test_unknown_message_is_no_attribute_and_named():
    with pytest.raises(AttributeError, match="NoSuchMessage"):
        _ = protos.NoSuchMessage
    with pytest.raises(KeyError, match="NoSuchMessage"):
        protos.message_class("NoSuchMessage")


def test_lower_case_name_is_never_looked_up_in_the_schema():
    with pytest.raises(AttributeError, match="predictRequest"):
        _ = protos.predictRequest


@pytest.mark.parametrize("name", ["DataType", "tensorflow.DataType"])
def test_enum_is_found_by_short_and_full_name(name):
    assert protos.enum(name).values_by_name["DT_FLOAT"].number == 1


def test_unknown_enum_is_a_key_error():
    with pytest.raises(KeyError, match="NoSuchEnum"):
        protos.enum("NoSuchEnum")


@pytest.mark.parametrize(
    ("text", "line", "column", "reason"),
    [
        ("max_batch_size { value: 8 }\nmax_batchsize { value: 8 }", 2, 1, "max_batchsize"),
        ("max_batch_size: 8", 1, 17, "8"),
        ("\n\n  allowed_batch_sizes: x", 3, 24, "x"),
        ("max_batch_size {", 1, None, ""),
    ],
)
def test_text_format_error_says_line_column_and_reason(text, line, column, reason):
    with pytest.raises(TextFormatError) as caught:
        from_text("BatchingParameters", text)
    error = caught.value
    assert error.line == line
    assert column is None or error.column == column
    assert reason in error.reason
    assert not error.reason[:1].isdigit()
    assert str(error) == f"{error.line}:{error.column}: {error.reason}"


def test_text_format_error_without_position_is_its_reason():
    assert str(TextFormatError("bad", None, None)) == "bad"


@settings(deadline=None)
@given(st.text(st.sampled_from('abm_x {}[]<>:;,"\\\n019-.#'), max_size=40) | st.text(max_size=40))
def test_any_text_is_parsed_or_refused_with_a_text_format_error(text):
    try:
        message = from_text("ModelServerConfig", text)
    except TextFormatError:
        return
    assert from_text("ModelServerConfig", to_text(message)) == message


def test_text_format_has_a_field_on_each_line():
    spec = protos.ModelSpec(name="m", signature_name="s")
    assert to_text(spec) == 'name: "m"\nsignature_name: "s"\n'


def test_any_is_opened_in_text_and_in_json():
    message = from_text("PlatformConfigMap", PLATFORM_CONFIG)
    packed = message.platform_configs["tensorflow"].source_adapter_config
    assert packed.type_url.endswith("SavedModelBundleSourceAdapterConfig")
    assert "enable_model_warmup: true" in to_text(message)
    assert '"enable_model_warmup": true' in to_json(message)


def test_json_keeps_the_names_of_the_schema_and_reads_back():
    status = protos.GetModelStatusResponse()
    status.model_version_status.add(version=7, state=30)
    text = to_json(status)
    assert '"model_version_status"' in text
    assert '"AVAILABLE"' in text
    assert (
        from_json(
            "GetModelStatusResponse",
            {"model_version_status": [{"version": "7", "state": "AVAILABLE", "news": 1}]},
        )
        == status
    )


def test_json_shows_values_that_are_zero():
    assert '"version": "0"' in to_json(protos.ModelVersionStatus())


def test_json_that_does_not_fit_is_a_value_error_with_the_field():
    with pytest.raises(ValueError, match="version"):
        from_json("ModelSpec", {"version": "many"})


@pytest.mark.parametrize("name", METHODS)
def test_method_leads_to_messages_of_the_schema(name):
    method = METHODS[name]
    assert method.path.startswith("/tensorflow.serving.")
    assert method.path.endswith(f"/{name}")
    assert protos.message_class(method.request) is not protos.message_class(method.response)


def test_light_packages_do_not_bring_tensorflow_along():
    program = (
        "import sys, tfserve_kit\n"
        "import tfserve_kit.protos, tfserve_kit.tensors.json, tfserve_kit.savedmodel\n"
        "import tfserve_kit.clients.grpc_channel, tfserve_kit.clients.rest\n"
        "import tfserve_kit.clients.grpc, tfserve_kit.repository\n"
        "tfserve_kit.protos.PredictRequest()\n"
        "print([name for name in sys.modules if name.startswith('tensorflow')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.split() == [b"[]"]


FIRST_USE = """
import sys, threading
sys.setswitchinterval(1e-6)
from tfserve_kit import protos
barrier, made = threading.Barrier(8), []

def use():
    barrier.wait()
    for name in ("PredictRequest", "TensorProto", "ModelSpec"):
        made.append((name, protos.message_class(name)))
    made.append(("pool", protos.PredictRequest.DESCRIPTOR.file.pool))
    made.append(("enum", protos.enum("DataType").file.pool))

threads = [threading.Thread(target=use) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert len(made) == 40, len(made)
assert len({id(value) for name, value in made}) == 4, made
protos.PredictRequest(model_spec=protos.ModelSpec(name="m"))
"""


@pytest.mark.parametrize("attempt", range(3))
def test_threads_that_use_it_first_at_once_share_one_pool(attempt):
    del attempt
    done = subprocess.run([sys.executable, "-c", FIRST_USE], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


FORK = """
import os, threading
from tfserve_kit import protos
protos._making.acquire()  # as a thread does that makes the pool just now
child = os.fork()
if not child:
    made = []
    worker = threading.Thread(target=lambda: made.append(protos.ModelSpec(name="m")), daemon=True)
    worker.start()
    worker.join(10)
    os._exit(0 if made else 1)
protos._making.release()
assert os.waitpid(child, 0)[1] == 0
"""


def test_process_forked_while_the_pool_is_made_makes_its_own():
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
