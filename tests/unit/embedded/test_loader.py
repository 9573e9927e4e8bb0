"""From loaded to served: batching, warm-up, and what the metrics are told of it."""

import json
import struct
import subprocess
import sys

import numpy as np
import pytest

from tfserve_kit import protos, tfrecord
from tfserve_kit.embedded import loader
from tfserve_kit.embedded.batching import BatchingServable, BatchOptions, BatchScheduler
from tfserve_kit.embedded.ledger import Ledger
from tfserve_kit.embedded.loader import PreparingLoader
from tfserve_kit.embedded.metrics import Metrics
from tfserve_kit.embedded.settings import BatchSettings
from tfserve_kit.embedded.status import Code, ServingError
from tfserve_kit.tensors import to_proto
from tfserve_kit.tfrecord import masked_crc

_SIGNATURES = protos.from_text(
    "SignatureDefMap",
    """
    signature_def { key: "serving_default" value {
      inputs { key: "x" value { name: "x:0" dtype: DT_FLOAT } }
      outputs { key: "y" value { name: "y:0" dtype: DT_FLOAT } }
      outputs { key: "z" value { name: "z:0" dtype: DT_FLOAT } } } }
    signature_def { key: "classify" value {
      inputs { key: "inputs" value { name: "in:0" dtype: DT_STRING } }
      outputs { key: "scores" value { name: "scores:0" dtype: DT_FLOAT } } } }
    signature_def { key: "regress" value {
      inputs { key: "inputs" value { name: "in:0" dtype: DT_STRING } }
      outputs { key: "outputs" value { name: "value:0" dtype: DT_FLOAT } } } }
    """,
).signature_def


class FakeServable:
    """Has a predict, a classify and a regress signature.

    Attributes:
        fetched: what each run computed.
        fault: raised by every run if set.
        closed: how often it was closed.
    """

    signatures = dict(_SIGNATURES)

    def __init__(self):
        self.fetched, self.fault, self.closed = [], None, 0

    def run(self, feeds, fetches, *, call=None):
        self.fetched.append(list(fetches))
        if self.fault:
            raise self.fault
        (fed,) = feeds.values()
        return [
            np.zeros((len(fed), 2) if name == "scores:0" else len(fed), np.float32)
            for name in fetches
        ]

    def close(self):
        self.closed += 1


PREDICT = protos.from_text("PredictionLog", "predict_log { request {} }")
PREDICT.predict_log.request.inputs["x"].CopyFrom(to_proto(np.float32([1, 2])))
INPUT = "input { example_list { examples {} examples {} } }"


def log(text):
    return protos.from_text("PredictionLog", text)


def predict_log(text):
    message = log(f"predict_log {{ request {{ {text} }} }}")
    message.MergeFrom(PREDICT)
    return message


def claiming_log(size):
    """A prediction of two numbers that stand for many."""
    message = log("predict_log { request {} }")
    tensor = message.predict_log.request.inputs["x"]
    tensor.dtype = 1
    tensor.tensor_shape.dim.add(size=size)
    tensor.float_val.extend([1, 2])
    return message


CLASSIFY = log(
    f"classify_log {{ request {{ model_spec {{ signature_name: 'classify' }} {INPUT} }} }}"
)
REGRESS = log(f"regress_log {{ request {{ model_spec {{ signature_name: 'regress' }} {INPUT} }} }}")


def multi_log(*tasks):
    found = [
        f"tasks {{ model_spec {{ signature_name: '{name}' }} method_name: '{method}' }}"
        for name, method in tasks
    ]
    return log(f"multi_inference_log {{ request {{ {' '.join(found)} {INPUT} }} }}")


@pytest.fixture
def servable():
    return FakeServable()


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def version(tmp_path):
    folder = tmp_path / "7"
    (folder / "assets.extra").mkdir(parents=True)
    return folder


@pytest.fixture
def warm(version, servable, metrics):
    """Load with a warm-up file of these messages or bytes."""

    def load(*messages, passes=1):
        datas = (each if isinstance(each, bytes) else each.SerializeToString() for each in messages)
        tfrecord.write(version / "assets.extra" / "tf_serving_warmup_requests", datas)
        return PreparingLoader(lambda _: servable, metrics, warmup_passes=passes)(version)

    return load


def values(metrics, name):
    """Return labels -> value of a metric; of a histogram the counts."""
    found = {}
    for line in metrics.page().splitlines():
        key, _, value = line.rpartition(" ")
        metric, _, labels = key.partition("{")
        if metric in {name, f"{name}_count"} and not line.startswith("#"):
            found["{" + labels] = int(value)
    return found


ATTEMPTS = ":tensorflow:cc:saved_model:load_attempt_count"
LOAD = ":tensorflow:cc:saved_model:load_latency"
LATENCY = ":tensorflow:serving:model_warmup_latency"
RECORDS = ":tensorflow:serving:model_warmup_records_read"


# Loading


def test_loaded_version_is_served_as_it_is_and_counted(version, servable, metrics):
    loaded = []
    loader = PreparingLoader(lambda path: loaded.append(path) or servable, metrics, warmup_passes=1)
    assert loader(version) is servable
    assert loaded == [version]
    assert values(metrics, ATTEMPTS) == {f'{{model_path="{version}",status="success"}}': 1}
    assert list(values(metrics, LOAD)) == [f'{{model_path="{version}"}}']
    assert not values(metrics, LATENCY) and not values(metrics, RECORDS)
    assert servable.fetched == [] and not servable.closed


def test_failed_load_is_counted_as_one(version, metrics):
    def fail(_):
        raise ServingError(Code.NOT_FOUND, "nothing there")

    with pytest.raises(ServingError, match="nothing there"):
        PreparingLoader(fail, metrics)(version)
    assert values(metrics, ATTEMPTS) == {f'{{model_path="{version}",status="fail"}}': 1}
    assert values(metrics, LOAD) == {}


# Batching


@pytest.fixture
def scheduler():
    made = BatchScheduler(1, "batch")
    yield made
    made.stop()


def batched(version, servable, metrics, scheduler, batching):
    loader = PreparingLoader(lambda _: servable, metrics, batching=batching, scheduler=scheduler)
    return loader(version)


def largest(loaded):
    """Return how many rows may run at once, None if they do not run in batches."""
    return loaded._options.max_batch_size if isinstance(loaded, BatchingServable) else None


@pytest.mark.parametrize("own", [None, "max_batch_size { value: 3 }"])
@pytest.mark.parametrize("per_model", [False, True])
def test_options_are_the_versions_own_where_each_brings_its_own(
    version, servable, metrics, scheduler, own, per_model
):
    if own:
        (version / "batching_params.pbtxt").write_text(own)
    batching = BatchSettings(BatchOptions(max_batch_size=5), per_model=per_model)
    loaded = batched(version, servable, metrics, scheduler, batching)
    assert largest(loaded) == ((3 if own else None) if per_model else 5)


def test_without_batching_nothing_is_put_around(version, servable, metrics, scheduler):
    assert batched(version, servable, metrics, scheduler, None) is servable


def test_batches_are_told_to_the_metrics(version, servable, metrics, scheduler):
    loaded = batched(version, servable, metrics, scheduler, BatchSettings())
    loaded.run({"x:0": np.float32([1])}, ["y:0", "z:0"])
    name = ":tensorflow:serving:batching_session:wrapped_run_count"
    assert values(metrics, name) == {"{}": 1}


def test_bad_options_of_a_version_fail_its_load_and_free_it(version, servable, metrics, scheduler):
    (version / "batching_params.pbtxt").write_text("max_batch_size { value: 0 }")
    with pytest.raises(ServingError, match="cannot work"):
        batched(version, servable, metrics, scheduler, BatchSettings(per_model=True))
    assert servable.closed == 1


# Warm-up


@pytest.mark.parametrize(
    ("message", "fetched"),
    [
        (PREDICT, [["y:0", "z:0"]]),
        (predict_log("output_filter: 'z'"), [["z:0"]]),
        (predict_log("model_spec { name: 'other' version { value: 99 } }"), [["y:0", "z:0"]]),
        (CLASSIFY, [["scores:0"]]),
        (REGRESS, [["value:0"]]),
        (multi_log(("regress", "tensorflow/serving/regress"),
                   ("classify", "tensorflow/serving/classify")), [["scores:0", "value:0"]]),
    ],
)  # fmt: skip
def test_stored_request_runs_whatever_model_it_names(
    warm, servable, metrics, version, message, fetched
):
    assert warm(message) is servable
    assert servable.fetched == fetched
    assert not servable.closed
    assert values(metrics, RECORDS) == {f'{{model_path="{version}"}}': 1}
    assert values(metrics, LATENCY) == {f'{{model_path="{version}",status="OK"}}': 1}


def test_requests_run_as_often_as_asked_and_records_count_once(warm, servable, metrics, version):
    warm(CLASSIFY, REGRESS, passes=2)
    assert servable.fetched == [["scores:0"], ["scores:0"], ["value:0"], ["value:0"]]
    assert values(metrics, RECORDS) == {f'{{model_path="{version}"}}': 2}


def test_warmup_that_is_not_wanted_reads_nothing(warm, version, servable, metrics):
    assert warm(b"\xff\xff", passes=0) is servable
    assert PreparingLoader(lambda _: servable, metrics)(version) is servable
    assert values(metrics, LATENCY) == {}


@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        (b"\xff\xff", Code.INVALID_ARGUMENT, "Failed to parse warmup record"),
        (predict_log("model_spec { signature_name: 'nope' }"), Code.FAILED_PRECONDITION,
         'Serving signature key "nope" not found.'),
        (log("predict_log { request { inputs { key: 'x' value { dtype: DT_INVALID } } } }"),
         Code.INVALID_ARGUMENT, "tensor parsing error: x"),
        (log(f"classify_log {{ request {{ {INPUT} }} }}"), Code.INVALID_ARGUMENT,
         "Expected one or two|No classification inputs"),
        (log("regress_log { request { model_spec { signature_name: 'regress' } } }"),
         Code.INVALID_ARGUMENT, "Input is empty."),
        (multi_log(("regress", "predict")), Code.UNIMPLEMENTED,
         "Unsupported signature method_name: predict"),
        (log("session_run_log {}"), Code.UNIMPLEMENTED, "Unsupported log_type for warmup"),
    ],
)  # fmt: skip
def test_stored_request_that_fails_fails_the_load(
    warm, servable, metrics, version, message, code, text
):
    with pytest.raises(ServingError, match=text) as caught:
        warm(REGRESS, message)
    assert caught.value.code is code
    assert servable.closed == 1
    assert values(metrics, LATENCY) == {f'{{model_path="{version}",status="{code.name}"}}': 1}
    assert values(metrics, RECORDS) == {}


def test_error_of_the_graph_fails_the_load(warm, servable):
    servable.fault = ServingError(Code.OUT_OF_RANGE, "index 9")
    with pytest.raises(ServingError) as caught:
        warm(PREDICT)
    assert caught.value is servable.fault
    assert servable.closed == 1


def test_unexpected_error_frees_the_version_too(warm, servable):
    servable.fault = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        warm(PREDICT)
    assert servable.closed == 1


def test_warmup_goes_through_batching(version, servable, metrics, scheduler, warm):
    warm(PREDICT, passes=0)  # writes the file
    loader = PreparingLoader(
        lambda _: servable, metrics,
        batching=BatchSettings(BatchOptions(max_batch_size=1)),
        scheduler=scheduler, warmup_passes=1,
    )  # fmt: skip
    with pytest.raises(ServingError, match="larger than maximum input batch size 1"):
        loader(version)
    assert servable.closed == 1


def test_warm_up_request_that_claims_too_much_fails_the_load_with_its_reason(
    warm, servable, monkeypatch
):
    monkeypatch.setattr("tfserve_kit.embedded.loader.MOST_REQUEST_BYTES", 14_000_000)
    warm(claiming_log(1_000_000), claiming_log(1_000_000), passes=3)
    with pytest.raises(ServingError, match=r"Warmup record 2 of .*values that were left out"):
        warm(PREDICT, claiming_log(4_000_000))
    assert servable.closed == 1


@pytest.mark.parametrize("kind", [CLASSIFY, REGRESS], ids=["classify", "regress"])
def test_results_of_a_warm_up_request_are_charged(warm, kind, monkeypatch):
    monkeypatch.setattr("tfserve_kit.embedded.loader.MOST_REQUEST_BYTES", 1_000_000)
    many = protos.PredictionLog.FromString(kind.SerializeToString())
    request = getattr(many, many.WhichOneof("log_type")).request
    for _ in range(4000):
        request.input.example_list.examples.add()
    with pytest.raises(ServingError, match="the results"):
        warm(many)


# Stored requests: reading the file, and replaying what is in it.


LOGS = {
    "predict_log": "Predict",
    "classify_log": "Classify",
    "regress_log": "Regress",
    "multi_inference_log": "MultiInference",
}


def record(data):
    length = struct.pack("<Q", len(data))
    return length + masked_crc(length) + data + masked_crc(data)


def stored(kind="predict_log", signature="s"):
    message = protos.PredictionLog()
    request = getattr(message, kind).request
    spec = request.tasks.add().model_spec if kind == "multi_inference_log" else request.model_spec
    spec.signature_name = signature
    return message.SerializeToString()


@pytest.fixture
def written(tmp_path):
    """Write a warm-up file of these bytes."""

    def write(content):
        file = tmp_path / "requests"
        file.write_bytes(content)
        return file

    return write


def replay(file, passes=1):
    sent = []
    count = loader.replay_warmup(
        file,
        lambda method, message, call: sent.append((method, message)),
        passes=passes,
        ledger=Ledger(1 << 30),
    )
    return count, sent


def refusal(file):
    with pytest.raises(ServingError) as caught:
        replay(file)
    return caught.value


# Records


@pytest.mark.parametrize("datas", [[], [b"one"], [b"one", b"", b"three" * 1000]])
def test_records_are_read_one_after_the_other(written, datas):
    file = written(b"".join(map(record, datas)))
    assert list(loader.warmup_records(file)) == datas


def error_of(read):
    """Return the message of the error that reading ends with, empty for none."""
    try:
        read()
    except ServingError as error:
        hint = ". Please verify your warmup data is in TFRecord format."
        return error.message.removesuffix(hint) if error.code is Code.DATA_LOSS else str(error)
    return ""


@pytest.mark.tensorflow
def test_damage_is_reported_as_the_server_reports_it(written):
    from tensorflow.python.framework import errors
    from tensorflow.python.lib.io import tf_record

    def said(file):
        reader = tf_record.tf_record_iterator(str(file))
        try:
            return len(list(reader)), ""
        except errors.DataLossError as error:
            return None, error.message

    whole = record(b"seven..") + record(b"second")
    files = [whole[:kept] for kept in range(len(whole))]
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        files.append(bytes(damaged))
    for content in files:
        file = written(content)
        count, message = said(file)
        assert error_of(lambda file=file: list(loader.warmup_records(file))) == message, content
        if not message:
            assert len(list(loader.warmup_records(file))) == count


def test_record_that_claims_to_be_enormous_is_not_read(written):
    length = struct.pack("<Q", 2**63)
    assert "truncated" in refusal(written(length + masked_crc(length) + b"x")).message


# Replay


@pytest.mark.parametrize(("kind", "method"), LOGS.items())
def test_each_kind_of_log_is_sent_by_its_method(written, kind, method):
    count, sent = replay(written(record(stored(kind))))
    assert count == 1
    ((sent_method, message),) = sent
    assert sent_method == method
    assert message.DESCRIPTOR.name == protos.METHODS[method].request


def test_requests_are_sent_in_order_each_as_often_as_asked(written):
    file = written(record(stored(signature="a")) + record(stored(signature="b")))
    count, sent = replay(file, passes=3)
    assert count == 2
    assert [message.model_spec.signature_name for _, message in sent] == [*"aaabbb"]


def test_empty_file_sends_nothing(written):
    assert replay(written(b"")) == (0, [])


def test_record_that_is_no_log_is_refused(written):
    error = refusal(written(record(b"\xff\xff")))
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message.startswith("Failed to parse warmup record: \ufffd\ufffd from /")


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (protos.PredictionLog(), "LOG_TYPE_NOT_SET"),
        (protos.from_text("PredictionLog", "session_run_log {}"), "session_run_log"),
    ],
)
def test_log_of_another_kind_is_not_implemented(written, message, name):
    error = refusal(written(record(message.SerializeToString())))
    assert error.code is Code.UNIMPLEMENTED
    assert error.message == f"Unsupported log_type for warmup: {name}"


def test_failing_request_ends_the_replay(written):
    sent = []

    def send(method, message, call):
        sent.append(message.model_spec.signature_name)
        if sent[-1] == "bad":
            raise ServingError(Code.OUT_OF_RANGE, "no")

    file = written(b"".join(record(stored(signature=name)) for name in ("good", "bad", "good")))
    with pytest.raises(ServingError, match="no"):
        loader.replay_warmup(file, send, passes=1, ledger=Ledger(1 << 20))
    assert sent == ["good", "bad"]


def test_each_pass_of_a_record_has_what_one_request_may_and_more_is_refused_by_its_number(written):
    ledger, held = Ledger(1 << 20), []

    def send(method, message, call):
        held.append(call.account.held_bytes)
        call.account.take(700_000 if message.model_spec.signature_name == "a" else 900_000, "y")

    file = written(record(stored(signature="a")) * 3 + record(stored(signature="b")))
    with pytest.raises(ServingError) as caught:
        loader.replay_warmup(file, send, passes=2, ledger=ledger)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert caught.value.message.startswith(
        f"Warmup record 4 of {file}: The request is too large: with 900000 bytes for y"
    )
    assert (len(held), len(set(held)), ledger.held_bytes) == (7, 1, 0)


def test_record_beyond_what_could_be_sent_is_refused_before_it_is_read(tmp_path):
    length = 1 << 40
    head = struct.pack("<Q", length)
    file = tmp_path / "requests"
    with file.open("wb") as stream:
        stream.write(head + masked_crc(head))
        stream.truncate(length + 100)  # takes no room on disk
    error = refusal(file)
    assert error.code is Code.INVALID_ARGUMENT
    assert f"has {length} bytes" in error.message


@pytest.mark.parametrize("fine", [True, False])
def test_thousand_records_are_the_most_there_may_be(written, fine):
    file = written(record(stored()) * (1000 if fine else 1001))
    if fine:
        assert replay(file)[0] == 1000
        return
    error = refusal(file)
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message == f"Number of warmup records exceeds the maximum (1000) at {file}"


# A process with sessions, and the priority of each of its threads.
_THREADS = """
import json, os, sys, time
from tfserve_kit import protos
from tfserve_kit.embedded.loader import SavedModelLoader, skip_package_import
from tfserve_kit.embedded.settings import SessionOptions
skip_package_import()
threads = int(sys.argv[1])
SavedModelLoader(SessionOptions(config=protos.ConfigProto(intra_op_parallelism_threads=threads)))
ids, same = set(), 0
while same < 10:  # one that has been joined may take a moment to go
    before, ids = ids, set(map(int, os.listdir("/proc/self/task")))
    same = same + 1 if ids == before else 0
    time.sleep(0.02)
print(json.dumps([os.getpriority(os.PRIO_PROCESS, each) for each in ids]))
"""


@pytest.mark.tensorflow
@pytest.mark.skipif(sys.platform != "linux", reason="what a process has for threads is told there")
def test_operations_run_in_as_many_threads_as_asked_for_and_these_give_way():
    few, many = (
        json.loads(subprocess.check_output([sys.executable, "-c", _THREADS, f"{threads}"]))
        for threads in (1, 6)
    )
    assert len(many) - len(few) == 5
    lowest = max(many)
    assert lowest > min(many)
    assert many.count(lowest) - few.count(lowest) == 5


# A process that serves a version of 96 MB, swaps it a few times, and says what it holds in between.
_SWAPS = """
import json, os
import numpy as np
import tensorflow as tf
from tfserve_kit.embedded.loader import SavedModelLoader, _runtime
from tfserve_kit.embedded.servable import SessionServable
from tfserve_kit.embedded.settings import SessionOptions

loader, runtime = SavedModelLoader(SessionOptions()), _runtime()

def load():
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [4_000_000])
        weights = [
            tf.compat.v1.get_variable(f"w{number}", x.shape, use_resource=True)
            for number in range(6)
        ]
        filled = [each.assign(x) for each in weights]
        y = tf.identity(tf.add_n(weights)[:3], name="y")
        session = tf.compat.v1.Session(graph=graph)
    for each in filled:
        session.run(each.op, {x: np.ones(4_000_000, np.float32)})
    return SessionServable(runtime, session, {}, compiled=True, borrow=loader._borrow)

def held_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

served, held = load(), []
for _ in range(4):
    following = load()
    served.close()
    served = following
    held.append(held_bytes())
following = load()
print(json.dumps([held, held_bytes(), served.run({}, ["y:0"])[0].tolist()]))
"""


@pytest.mark.tensorflow
@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is told there")
def test_memory_of_a_version_that_is_unloaded_goes_back_and_the_others_keep_theirs():
    told = subprocess.check_output([sys.executable, "-c", _SWAPS], text=True)
    one, two_bytes, answer = json.loads(told.splitlines()[-1])
    assert answer == [6.0] * 3
    assert two_bytes - max(one) > 80_000_000  # such a version is held
    assert max(one) - min(one) < 30_000_000


def test_server_starts_without_what_deployment_files_take():
    code = "import sys, tfserve_kit.embedded.__main__, tfserve_kit.embedded.server\n"
    code += "print({'pydantic', 'tensorflow'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
