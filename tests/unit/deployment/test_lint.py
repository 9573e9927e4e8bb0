"""What the linter finds in a deployment: each rule where it must speak and where it must not."""

import shutil
from pathlib import Path

import pytest

from tests.unit.saved_models import meta_graph, tensor, write
from tfserve_kit import protos
from tfserve_kit.deployment import build
from tfserve_kit.deployment.lint import RULES, Machine, Severity, lint

ROOMY = Machine(cpus=4, memory_bytes=10**12)
SHARD = "variables/variables.data-00000-of-00001"
LABELS_FLAG = "allow_version_labels_for_unavailable_models"


@pytest.fixture
def base_path(models, tmp_path):
    """A base path with two good versions of a model, to be spoilt."""
    return shutil.copytree(models / "half_plus_two", tmp_path / "half")


@pytest.fixture
def found(base_path):
    """Lint a deployment of `half` and return its findings as {rule: [finding]}."""

    def run(model=None, *, machine=ROOMY, name="half", others=None, flags=None, **sections):
        document = {
            "server": {"flags": flags or {}},
            "models": {name: {"base_path": str(base_path), **(model or {})}, **(others or {})},
            **sections,
        }
        rules = {}
        deployment = build(document, source="test", folder=base_path.parent)
        for finding in lint(deployment, machine=machine):
            rules.setdefault(finding.rule, []).append(finding)
        return rules

    return run


def one(findings, rule):
    """Return the only finding of a rule, whose severity is the table's."""
    (finding,) = findings[rule]
    (row,) = [each for each in RULES if each.name == rule]
    assert finding.severity is row.severity
    return finding


def add(base_path, models, name, source="half_plus_two/1"):
    shutil.copytree(models / source, base_path / name)


def cut(version):
    (version / "saved_model.pb").write_bytes((version / "saved_model.pb").read_bytes()[:500])


# As a whole


@pytest.mark.parametrize("versions", ["latest", "all", {"latest": 2}, {"specific": [1, 2]}])
def test_good_deployment_has_no_findings(found, versions):
    batching = {
        "max_batch_size": 16,
        "batch_timeout_micros": 1000,
        "num_batch_threads": 4,
        "max_enqueued_batches": 100,
    }
    model = {"versions": versions, "labels": {"stable": 2}}
    assert found(model, batching=batching, monitoring={}) == {}


@pytest.mark.parametrize(
    "name", ["mlp", "image", "dtypes", "strings", "scalars", "multi_io", "batchy", "legacy"]
)
def test_models_of_the_tests_have_no_findings(models, name):
    document = {"models": {name: {"base_path": name}}}
    assert lint(build(document, source="test", folder=models), machine=ROOMY) == []


def test_this_machine_is_looked_at_where_none_is_given(models):
    document = {"models": {"mlp": {"base_path": "mlp"}}}
    assert lint(build(document, source="test", folder=models)) == []
    assert Machine.here().cpus >= 1


def test_worst_findings_come_first(found, base_path):
    (base_path / "v3").mkdir()
    findings = found({"labels": {"old": 1}}, others={"far": {"base_path": "gs://bucket/m"}})
    severities = [each[0].severity for each in findings.values()]
    assert severities == sorted(severities, key=list(Severity).index)
    assert set(severities) == set(Severity)


def test_every_rule_has_a_name_of_its_own_and_a_reason():
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert rule.name == rule.name.lower()
        assert rule.look.__name__ == "_" + rule.name.replace("-", "_")
        assert rule.look.__doc__, f"{rule.name}: say what the server does"


# Base paths


def test_missing_base_path_is_an_error(found, base_path):
    shutil.rmtree(base_path)
    finding = one(found(), "base-path-unreadable")
    assert finding.path == "models.half.base_path"
    assert finding.message == f"{base_path} cannot be read (No such file or directory)"
    push = f"tfkit push-model SAVED_MODEL --to {base_path}"
    assert finding.remedy == f"store a version there: {push}"


def test_remedy_can_be_pasted_into_a_shell(found, base_path):
    place = base_path.rename(base_path.parent / "my models")
    shutil.rmtree(place)
    finding = one(found(models={"half": {"base_path": str(place)}}), "base-path-unreadable")
    assert finding.remedy.endswith(f"--to '{place}'")


def test_base_path_that_is_a_file_is_an_error(found, base_path):
    shutil.rmtree(base_path)
    base_path.write_text("")
    findings = found()
    assert "one folder per version" in one(findings, "base-path-unreadable").remedy
    assert list(findings) == ["base-path-unreadable"]


def test_base_path_without_versions_is_an_error(found, base_path):
    shutil.rmtree(base_path)
    base_path.mkdir()
    finding = one(found({"versions": {"specific": [1]}}), "no-version")
    assert finding.message == f"{base_path} holds no version"
    push = f"tfkit push-model SAVED_MODEL --to {base_path}"
    assert finding.remedy == f"store a version there: {push}"


def test_base_path_that_is_a_saved_model_itself_is_told_so(found, base_path):
    shutil.rmtree(base_path / "2")
    (base_path / "1").rename(base_path.parent / "model")
    shutil.rmtree(base_path)
    (base_path.parent / "model").rename(base_path)
    assert "SavedModel itself" in one(found(), "no-version").remedy


def test_specific_version_that_is_not_there_is_an_error(found):
    finding = one(found({"versions": {"specific": [1, 7]}}), "version-not-on-disk")
    assert finding.path == "models.half.versions"
    assert finding.message.startswith("version 7 is not in ")
    assert finding.remedy == "it holds [1, 2]"


@pytest.mark.parametrize("name", ["v1", "1.0", "1e3", "3.tmp", "version_3", str(2**63)])
def test_folder_that_looks_like_a_version_is_named(found, base_path, name):
    (base_path / name).mkdir()
    finding = one(found(), "name-is-no-version")
    assert repr(name) in finding.message


def test_saved_model_under_another_name_is_named(found, base_path, models):
    add(base_path, models, ".tmp")
    add(base_path, models, "candidate")
    finding = one(found(), "name-is-no-version")
    assert finding.message == f"'.tmp', 'candidate' in {base_path} will never be loaded"


def test_other_folders_and_files_and_running_pushes_are_nobodys_business(found, base_path, models):
    (base_path / "notes").mkdir()
    (base_path / "1.txt").write_text("")
    add(base_path, models, ".tfkit-staging-abc")
    assert found() == {}


@pytest.mark.parametrize(("name", "number"), [("0003", 3), ("+3", 3), (" 3", 3), ("-3", -3)])
def test_odd_spelling_that_counts_is_told(found, base_path, models, name, number):
    add(base_path, models, name)
    finding = one(found(), "odd-version-name")
    assert finding.message == f"{name!r} in {base_path} counts as version {number}"


def test_two_spellings_of_a_number_are_told(found, base_path, models):
    add(base_path, models, "0002")
    findings = found()
    assert list(findings) == ["two-spellings"]
    text = one(findings, "two-spellings").message
    assert text == "version 2 is '2'; '0002' is ignored"


def test_file_with_a_number_for_a_name_is_told(found, base_path):
    (base_path / "0").write_text("")
    finding = one(found(), "version-is-no-folder")
    assert finding.message == f"{base_path / '0'} counts as version 0, but is not a folder"


def test_file_that_is_the_newest_version_keeps_the_model_from_loading(found, base_path):
    (base_path / "7").write_text("")
    findings = found()
    assert list(findings) == ["model-damaged"]
    assert "7 is a file, not a folder" in one(findings, "model-damaged").message


def test_link_to_nowhere_that_is_the_newest_version_keeps_the_model_from_loading(found, base_path):
    (base_path / "7").symlink_to(base_path / "nowhere")
    assert "a link to nowhere" in one(found(), "model-damaged").message


def test_link_to_a_good_version_is_fine(found, base_path):
    (base_path / "7").symlink_to(base_path / "2")
    assert found() == {}


def test_s3_is_an_error_and_other_remote_places_are_noted(found):
    others = {"a": {"base_path": "s3://bucket/a"}, "b": {"base_path": "gs://bucket/b"}}
    findings = found(others=others, flags={"num_load_threads": 1})
    assert one(findings, "s3-base-path").path == "models.a.base_path"
    assert "local folder" in one(findings, "s3-base-path").remedy
    assert one(findings, "remote-base-path").path == "models.b.base_path"
    assert len(findings) == 2


# Versions that will be loaded


def test_damaged_newest_version_is_an_error_though_an_older_one_is_whole(found, base_path):
    cut(base_path / "2")
    finding = one(found(), "model-damaged")
    assert finding.path == "models.half.base_path"
    assert finding.message.startswith(f"version 2 in {base_path}: saved_model.pb cannot be parsed")
    assert finding.remedy.endswith(f"tfkit push-model SAVED_MODEL --to {base_path}")


def test_remedy_of_a_damaged_version_can_be_pasted_whatever_its_folder_is_called(found, base_path):
    other = base_path.rename(base_path.with_name("my model"))
    cut(other / "2")
    finding = one(found({"base_path": str(other)}), "model-damaged")
    assert finding.remedy.endswith(f"tfkit push-model SAVED_MODEL --to '{other}'")


def test_damaged_version_is_a_warning_while_another_is_loaded(found, base_path):
    cut(base_path / "2")
    findings = found({"versions": "all"})
    assert list(findings) == ["version-damaged"]
    assert one(findings, "version-damaged").message.startswith("version 2 in ")


def test_half_copied_variables_are_an_error(found, base_path):
    shard = base_path / "2" / SHARD
    shard.write_bytes(shard.read_bytes()[:3])
    assert "has 3 bytes of the " in one(found(), "model-damaged").message


@pytest.mark.parametrize(
    ("version", "rule"), [("2", "model-damaged"), ("1", "version-damaged")], ids=["newest", "older"]
)
def test_missing_variables_are_worst_in_the_newest_version_since_it_loads_all_the_same(
    found, base_path, version, rule
):
    shutil.rmtree(base_path / version / "variables")
    findings = found({"versions": "all"})
    assert list(findings) == [rule]
    assert "variables/variables.index is missing" in one(findings, rule).message


def test_damage_in_a_version_that_is_not_loaded_is_nobodys_business(found, base_path):
    cut(base_path / "1")
    assert found() == {}
    assert found({"versions": {"specific": [2]}}) == {}


def test_version_that_cannot_be_read_is_an_error(found, base_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root may read everything
    assert "cannot be read (Permission denied)" in one(found(), "model-damaged").message


def test_graph_without_the_tag_is_an_error(found, base_path, models):
    add(base_path, models, "3", "othertag/1")
    finding = one(found(), "tag-not-found")
    assert "no graph is tagged 'serve'; it has train" in finding.message
    assert 'saved_model_tags = "train"' in finding.remedy


def test_graph_with_the_tag_that_was_asked_for_is_fine(found, base_path, models):
    add(base_path, models, "3", "othertag/1")
    assert list(found(flags={"saved_model_tags": "train"})) == ["no-default-signature"]


def test_tag_of_a_platform_file_wins_over_the_flag(found, base_path, models, tmp_path):
    add(base_path, models, "3", "othertag/1")
    kind = "type.googleapis.com/tensorflow.serving.SavedModelBundleSourceAdapterConfig"
    config = f'[{kind}] {{ legacy_config {{ saved_model_tags: "train" }} }}'
    file = tmp_path / "platform.txt"
    file.write_text(
        f'platform_configs {{ key: "tensorflow" value {{ source_adapter_config {{ {config} }} }} }}'
    )
    flags = {"saved_model_tags": "serve"}
    assert "tag-not-found" in found(flags=flags)
    assert "tag-not-found" not in found(flags=flags | {"platform_config_file": str(file)})
    assert "tag-not-found" in found(flags={"platform_config_file": str(tmp_path / "none")})


def test_model_without_the_default_signature_is_told(found, base_path, models):
    add(base_path, models, "3", "nodefault/1")
    finding = one(found(), "no-default-signature")
    assert finding.message.endswith("has no signature 'serving_default', only other")


def test_model_without_any_signature_is_told(found, base_path):
    message = protos.SavedModel(saved_model_schema_version=1)
    message.meta_graphs.add().meta_info_def.tags.append("serve")
    (base_path / "3").mkdir()
    (base_path / "3" / "saved_model.pb").write_bytes(message.SerializeToString())
    finding = one(found(), "no-signature")
    assert finding.message.endswith("has no signature, so no request can call it")
    assert "export it with signatures=" in finding.remedy
    assert finding.severity is Severity.ERROR


def test_signature_that_no_request_can_call(found, base_path):
    file = base_path / "2" / "saved_model.pb"
    message = protos.SavedModel.FromString(file.read_bytes())
    outputs = message.meta_graphs[0].signature_def["serving_default"].outputs
    outputs["ragged"].composite_tensor.SetInParent()
    file.write_bytes(message.SerializeToString())
    finding = one(found(), "cannot-answer")
    assert "version 2" in finding.message
    assert "output 'ragged' is a composite tensor" in finding.message
    assert "cannot-answer" not in found({"versions": {"specific": [1]}})


@pytest.mark.parametrize(
    ("versions", "number", "why"),
    [("latest", 1, "the policy does not load it"), ("all", 9, "it is not there")],
)
def test_label_of_a_version_that_is_not_loaded_is_an_error(found, versions, number, why):
    model = {"versions": versions, "labels": {"stable": number, "new": 2}}
    finding = one(found(model), "label-not-loaded")
    assert finding.path == "models.half.labels.stable"
    assert finding.message.endswith(why)


def test_labels_are_refused_at_a_start_only_without_the_flag(found):
    labels = {"labels": {"stable": 2}}
    assert one(found(labels, flags={LABELS_FLAG: False}), "labels-refused").path == (
        f"server.flags.{LABELS_FLAG}"
    )
    assert found(labels) == {}
    assert found(flags={LABELS_FLAG: False}) == {}


@pytest.mark.parametrize("name", ["a/b", "a:b", "a?b", "a b", "m\u00f6dell"])
def test_name_that_rest_paths_must_encode_is_told(found, name):
    finding = one(found(name=name), "awkward-name")
    assert finding.path == f"models.{name}"
    label = one(found({"labels": {name: 2}}), "awkward-name")
    assert label.path == f"models.half.labels.{name}"


def test_plain_names_are_fine(found):
    assert found({"labels": {"v_1.0-rc~2": 2}}, name="Upper.Case-1_x") == {}


def test_memory_counts_what_is_loaded_times_six_fifths(found, base_path):
    size = sum(file.stat().st_size for file in (base_path / "2").rglob("*") if file.is_file())
    enough = Machine(4, size * 6 // 5 + 1)
    assert found(machine=enough) == {}
    assert one(found({"versions": "all"}, machine=enough), "memory-short").path == "models"


# Settings


def test_batch_that_handler_threads_cannot_fill_is_told_with_the_numbers(found):
    batching = {"max_batch_size": 128, "batch_timeout_micros": 1000}
    finding = one(found(batching=batching), "batch-never-full")
    assert finding.path == "batching.max_batch_size"
    assert "is 128, but grpc_max_threads is 64 and rest_api_num_threads is 64" in finding.message
    assert "256" in finding.remedy


def test_batch_that_the_default_handler_threads_of_a_large_machine_fill_is_fine(found):
    batching = {"max_batch_size": 128, "batch_timeout_micros": 1000}
    assert "batch-never-full" not in found(batching=batching, machine=Machine(32, 1 << 40))


@pytest.mark.parametrize(
    ("batching", "flags"),
    [
        ({"max_batch_size": 128, "batch_timeout_micros": 9}, {"grpc_max_threads": 128}),
        ({"max_batch_size": 128, "batch_timeout_micros": 9}, {"rest_api_num_threads": 128}),
        ({"max_batch_size": 64, "batch_timeout_micros": 9}, {}),
        ({}, {}),
    ],
    ids=["grpc raised", "rest raised", "few rows", "nobody waits"],
)
def test_batch_that_can_be_filled_is_fine(found, batching, flags):
    assert "batch-never-full" not in found(batching=batching, flags=flags)


def test_large_batches_without_a_timeout_are_noted(found):
    flags = {"grpc_max_threads": 128}
    findings = found(batching={"max_batch_size": 64}, flags=flags)
    assert one(findings, "batch-timeout-zero").path == "batching.batch_timeout_micros"
    timeout = {"max_batch_size": 64, "batch_timeout_micros": 500}
    assert found(batching=timeout, flags=flags) == {}
    assert found(batching={"max_batch_size": 16}) == {}


def test_queue_shorter_than_the_requests_is_noted(found):
    short = {"max_batch_size": 2, "max_enqueued_batches": 1, "num_batch_threads": 1}
    finding = one(found(batching=short), "queue-too-short")
    assert "room for 4 rows, but 128 requests" in finding.message
    assert found(batching=short | {"max_enqueued_batches": 63}) == {}


def test_more_batch_threads_than_cpus_can_run_are_noted(found):
    batching = {"max_batch_size": 8, "num_batch_threads": 17}
    assert one(found(batching=batching), "many-batch-threads").message == "is 17, on 4 CPUs"
    assert found(batching=batching | {"num_batch_threads": 16}) == {}


def test_rest_timeout_below_the_wait_for_a_batch_is_told(found):
    batching = {"max_batch_size": 8, "batch_timeout_micros": 20_000}
    findings = found(batching=batching, flags={"rest_api_timeout_in_ms": 20})
    assert "a batch may wait 20 ms" in one(findings, "rest-gives-up-early").message
    assert found(batching=batching, flags={"rest_api_timeout_in_ms": 21}) == {}


def test_several_models_loaded_inline_are_noted(found, models):
    others = {"mlp": {"base_path": str(models / "mlp")}}
    finding = one(found(others=others), "one-load-blocks-all")
    assert "retried (5 times, 300 s)" in finding.message


@pytest.mark.parametrize(
    "flags",
    [{"num_load_threads": 1}, {"max_num_load_retries": 0}, {"load_retry_interval_micros": 1000}],
)
def test_several_models_whose_loads_stall_nobody_are_fine(found, models, flags):
    assert found(others={"mlp": {"base_path": str(models / "mlp")}}, flags=flags) == {}


def test_looking_once_is_told_unless_the_versions_are_fixed(found):
    flags = {"file_system_poll_wait_seconds": 0}
    assert one(found(flags=flags), "pushes-unnoticed").message.startswith("is 0: versions of half")
    assert found({"versions": {"specific": [2]}}, flags=flags) == {}


def test_never_looking_is_an_error(found):
    findings = found(flags={"file_system_poll_wait_seconds": -1})
    assert list(findings) == ["never-looks"]
    one(findings, "never-looks")


def test_page_of_metrics_among_the_paths_of_models_is_told(found):
    findings = found(monitoring={"path": "/v1/models/half"})
    assert one(findings, "monitoring-path-clash").path == "monitoring.path"
    assert found(monitoring={"path": "/v1/models/half", "prometheus": False}) == {}
    assert found(monitoring={"path": "/v10"}) == {}


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"rest_api_num_threads": 0}, "rest_api_num_threads"),
        ({"grpc_channel_arguments": "a=1,b"}, "grpc_channel_arguments"),
        (
            {f"tensorflow_{each}_parallelism": 2 for each in ("session", "intra_op", "inter_op")},
            "tensorflow_session_parallelism",
        ),
    ],
)
def test_flag_that_the_server_dies_of_is_an_error(found, flags, name):
    assert one(found(flags=flags), "fatal-flag").path == f"server.flags.{name}"


def test_flags_that_the_server_can_start_with_are_fine(found):
    flags = {
        "rest_api_num_threads": 1,
        "grpc_channel_arguments": "a=1,b=2",
        "tensorflow_intra_op_parallelism": 2,
        "tensorflow_inter_op_parallelism": 2,
    }
    assert found(flags=flags) == {}


@pytest.mark.parametrize(
    ("flags", "batching", "path"),
    [
        ({"num_tflite_pools": 2}, None, "server.flags.num_tflite_pools"),
        (
            {"num_request_iterations_for_warmup": 2, "enable_model_warmup": False},
            None,
            "server.flags.num_request_iterations_for_warmup",
        ),
        (
            {"enable_per_model_batching_parameters": True},
            None,
            "server.flags.enable_per_model_batching_parameters",
        ),
        (
            {},
            {"max_batch_size": 8, "max_execution_batch_size": 4},
            "batching.max_execution_batch_size",
        ),
        ({"platform_config_file": "p"}, {"max_batch_size": 8}, "batching"),
        (
            {"platform_config_file": "p", "tensorflow_session_parallelism": 2},
            None,
            "server.flags.tensorflow_session_parallelism",
        ),
    ],
)
def test_setting_without_effect_is_told(found, flags, batching, path):
    sections = {"batching": batching} if batching else {}
    findings = found(flags=flags, **sections)
    assert list(findings) == ["without-effect"]
    assert one(findings, "without-effect").path == path


def test_settings_that_have_what_they_need_are_fine(found):
    flags = {"num_request_iterations_for_warmup": 2, "enable_per_model_batching_parameters": True}
    batching = {
        "max_batch_size": 8,
        "max_execution_batch_size": 4,
        "enable_large_batch_splitting": True,
    }
    assert found(flags=flags, batching=batching) == {}


def test_wish_for_tflite_without_such_a_model_is_told(found, base_path):
    flags = {"prefer_tflite_model": True, "num_tflite_pools": 2}
    assert one(found(flags=flags), "no-tflite-model").path == "server.flags.prefer_tflite_model"
    (base_path / "2" / "model.tflite").write_bytes(b"")
    assert found(flags=flags) == {}


def test_version_that_is_served_from_its_tflite_model_needs_no_graph(found, base_path):
    (base_path / "2" / "model.tflite").write_bytes(b"")
    (base_path / "2" / "saved_model.pb").unlink()
    assert found(flags={"prefer_tflite_model": True}) == {}
    assert list(found()) == ["model-damaged"]


# Batching


def spoilt(base_path, change):
    """Change the signatures of the newest version."""
    file = base_path / "2" / "saved_model.pb"
    message = protos.SavedModel.FromString(file.read_bytes())
    change(message.meta_graphs[0].signature_def)
    file.write_bytes(message.SerializeToString())


def parameter(signatures):
    tensor(signatures["serving_default"].inputs["keep"], "keep:0", ())


def constant(signatures):
    tensor(signatures["serving_default"].outputs["const"], "const:0", (2,))


def ragged(signatures):
    tensor(signatures["serving_default"].inputs["x_1"], "x_1:0", (-1,), dtype=9)


def fixed(signatures):
    for each in (signatures["serving_default"].inputs, signatures["serving_default"].outputs):
        for alias in each:
            tensor(each[alias], each[alias].name, (4,))


def nothing(signatures):
    signatures["serving_default"].inputs.clear()


def test_operation_that_a_push_refuses_is_told_where_it_was_copied_by_hand(tmp_path):
    write(tmp_path / "m" / "1", meta_graph(("y", "EagerPyFunc", "x")))
    document = {"models": {"m": {"base_path": "m"}}}
    findings = lint(build(document, source="test", folder=tmp_path), machine=ROOMY)
    (found,) = [each for each in findings if each.rule == "refused-operation"]
    assert "EagerPyFunc: calls Python code" in found.message
    assert found.path == "models.m.base_path"


def test_operations_that_no_server_runs_are_not_told(found):
    assert "refused-operation" not in found()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (parameter, "input 'keep' is float []: it has no batch axis"),
        (constant, "output 'const' is float [2], not row by row"),
        (fixed, "every request must have 4 rows"),
        (nothing, "it has no input"),
    ],
)
def test_model_that_cannot_be_batched_is_an_error(found, base_path, change, why):
    spoilt(base_path, change)
    assert "cannot-batch" not in found()
    finding = one(found(batching={"max_batch_size": 8}), "cannot-batch")
    assert why in finding.message and "'serving_default' of version 2" in finding.message
    assert finding.path == "models.half.base_path"
    assert "leave [batching] out" in finding.remedy


def test_ragged_model_cannot_be_batched(tmp_path):
    graph = meta_graph(output="x")
    ragged(graph.signature_def)
    function = graph.object_graph_def.concrete_functions["f"].canonicalized_input_signature
    function.tuple_value.values.add().type_spec_value.type_spec_class = 3
    write(tmp_path / "m" / "1", graph)
    document = {"models": {"m": {"base_path": "m"}}, "batching": {}}
    found = lint(build(document, source="test", folder=tmp_path), machine=ROOMY)
    assert any(each.rule == "cannot-batch" and "ragged" in each.message for each in found)


def test_batches_of_just_the_rows_that_a_model_takes_are_fine(found, base_path):
    spoilt(base_path, fixed)
    assert "cannot-batch" not in found(batching={"max_batch_size": 4})


def test_other_signature_that_cannot_be_batched_is_a_warning(found, base_path):
    spoilt(base_path, lambda all_: tensor(all_["other"].inputs["n"], "n:0", ()))
    findings = found(batching={})
    assert "'other'" in one(findings, "signature-cannot-batch").message
    assert "cannot-batch" not in findings


def test_output_of_unknown_shape_is_a_warning(found, base_path):
    spoilt(base_path, lambda all_: tensor(all_["serving_default"].outputs["y"], "y:0", None))
    findings = found(batching={})
    assert "'y', of unknown shape" in one(findings, "signature-cannot-batch").message


def test_version_without_batching_parameters_of_its_own_is_not_batched(found, base_path):
    spoilt(base_path, parameter)
    flags = {"enable_per_model_batching_parameters": True}
    assert "cannot-batch" not in found(flags=flags, batching={})
    (base_path / "2" / "batching_params.pbtxt").touch()
    assert "cannot-batch" in found(flags=flags, batching={})


# Replicas


@pytest.mark.parametrize(("most", "nodes"), [(1, 4), (2, 2), (3, 2)])
def test_update_of_replicas_that_fill_their_nodes_takes_one_place_more(found, most, nodes):
    server = {"engine": "swarm", "replicas": 3}
    swarm = {"max_per_node": most}
    findings = found(server=server, swarm=swarm, gateway={})
    assert f"{nodes} nodes" in one(findings, "update-needs-room").message
    assert "update-needs-room" not in found(server=server, gateway={})
    assert "update-needs-room" not in found(server=server, swarm=swarm)  # old ones end first


# Kubernetes


@pytest.fixture
def on_kubernetes(tmp_path):
    """Lint a deployment for Kubernetes and return its findings as {rule: finding}."""

    def run(*, flags=None, **sections):
        document = {
            "server": {"engine": "kubernetes", "flags": flags or {}},
            "models": {"half": {"base_path": "/models/half"}},
            "docker": {"cpus": 2, "memory": "4g"},
            "kubernetes": {"claim": "models"},
            **sections,
        }
        spec = build(document, source="test", folder=tmp_path)
        return {each.rule: each for each in lint(spec, machine=ROOMY)}

    return run


def test_claim_of_a_cluster_is_not_looked_for_here(on_kubernetes):
    assert "base-path-unreadable" not in on_kubernetes()


@pytest.mark.parametrize(
    ("age", "said"),
    [(2**31 - 1, "without end"), (600_000, "600 s"), (10_000, None), (None, None)],
)
def test_connections_that_grow_too_old_are_told(on_kubernetes, age, said):
    name = "grpc.max_connection_age_ms"
    flags = {"grpc_channel_arguments": "grpc.x=1" + (f",{name}={age}" if age else "")}
    finding = on_kubernetes(flags=flags).get("connections-never-end")
    assert (finding is None) if said is None else (said in finding.message)


@pytest.mark.parametrize("docker", [{}, {"cpus": 2}, {"memory": "1g"}])
def test_pods_for_which_nothing_is_reserved_are_told(on_kubernetes, docker):
    assert "nothing-reserved" not in on_kubernetes()
    assert "nothing-reserved" in on_kubernetes(docker=docker)


def test_folder_of_the_nodes_is_a_warning(on_kubernetes):
    assert "folder-of-the-nodes" not in on_kubernetes()
    finding = on_kubernetes(kubernetes={"host_path": "/models"})["folder-of-the-nodes"]
    assert "/models" in finding.message


def test_rest_of_pods_has_no_tls_wherever_it_listens(on_kubernetes):
    assert "rest-stays-plain" not in on_kubernetes()
    assert "rest-stays-plain" in on_kubernetes(flags={"ssl_config_file": "ssl.txt"})
