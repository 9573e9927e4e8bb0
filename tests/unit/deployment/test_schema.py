"""The deployment as data: defaults and what each section refuses."""

import pytest
from pydantic import ValidationError

from tfserve_kit.deployment import Batching, Model, Monitoring, Server, Spec, VersionPolicy

MODEL = Model(base_path="/m")


def refusal(kind, **values):
    """Return the only error of a section as (place, words)."""
    with pytest.raises(ValidationError) as caught:
        kind(**values)
    (error,) = caught.value.errors()
    return ".".join(map(str, error["loc"])), error["msg"]


def test_smallest_deployment_has_the_documented_defaults():
    spec = Spec(models={"m": MODEL})
    assert spec.server == Server(
        name="default",
        engine="auto",
        host="127.0.0.1",
        grpc_port=8500,
        rest_port=8501,
        ready_timeout_s=120.0,
        flags={},
    )
    assert MODEL.versions == VersionPolicy(latest=1)
    assert (MODEL.platform, MODEL.labels) == ("tensorflow", {})
    assert (spec.batching, spec.monitoring) == (None, None)
    assert Batching().model_dump(exclude_none=True) == {
        "allowed_batch_sizes": (),
        "pad_variable_length_inputs": False,
    }
    assert Monitoring() == Monitoring(prometheus=True, path="/monitoring/prometheus/metrics")


@pytest.mark.parametrize("kind", [Spec, Server, Model, Batching, Monitoring, VersionPolicy])
def test_every_field_is_described(kind):
    assert all(field.description for field in kind.model_fields.values())


def test_section_cannot_be_changed_once_made():
    with pytest.raises(ValidationError, match="frozen"):
        MODEL.base_path = "/other"


class TestVersions:
    @pytest.mark.parametrize(
        ("spelling", "policy"),
        [
            ("latest", {"latest": 1}),
            ("all", {"all": True}),
            ({"latest": 3}, {"latest": 3}),
            ({"all": True}, {"all": True}),
            ({"specific": [3, 1]}, {"specific": (3, 1)}),
            ({"specific": [0, 2**63 - 1]}, {"specific": (0, 2**63 - 1)}),
            (VersionPolicy(latest=2), {"latest": 2}),
        ],
    )
    def test_spelling_gives_the_policy(self, spelling, policy):
        assert Model(base_path="/m", versions=spelling).versions == VersionPolicy(**policy)

    @pytest.mark.parametrize(
        "policy",
        [
            {},
            {"all": False},
            {"specific": []},
            {"latest": 1, "all": True},
            {"latest": 1, "specific": [1]},
            {"all": True, "specific": [1]},
        ],
    )
    def test_none_or_several_of_the_three_are_refused(self, policy):
        place, words = refusal(Model, base_path="/m", versions=policy)
        assert place == "versions"
        assert "exactly one of latest, all and specific" in words

    def test_unknown_word_is_refused_naming_the_spellings(self):
        _, words = refusal(Model, base_path="/m", versions="newest")
        for part in ("'newest'", "latest", "all", "{latest = N}", "{specific = [N]}"):
            assert part in words

    @pytest.mark.parametrize(
        ("policy", "place"),
        [
            ({"latest": 0}, "versions.latest"),
            ({"latest": True}, "versions.latest"),
            ({"latest": "2"}, "versions.latest"),
            ({"latest": 2**31}, "versions.latest"),
            ({"specific": [-1]}, "versions.specific.0"),
            ({"specific": [1, 2**63]}, "versions.specific.1"),
            ({"specific": ["1"]}, "versions.specific.0"),
            ({"all": 1}, "versions.all"),
        ],
    )
    def test_value_outside_its_range_is_refused_in_its_place(self, policy, place):
        assert refusal(Model, base_path="/m", versions=policy)[0] == place


class TestLabels:
    def test_label_may_name_a_listed_version(self):
        labels = {"stable": 1, "canary": 2}
        model = Model(base_path="/m", versions={"specific": [1, 2]}, labels=labels)
        assert model.labels == labels

    @pytest.mark.parametrize("versions", ["latest", "all", {"latest": 2}])
    def test_label_may_name_any_version_where_none_is_listed(self, versions):
        assert Model(base_path="/m", versions=versions, labels={"a": 9}).labels == {"a": 9}

    def test_labels_of_versions_that_are_not_loaded_are_all_named(self):
        _, words = refusal(
            Model,
            base_path="/m",
            versions={"specific": [1]},
            labels={"good": 1, "bad": 2, "worse": 3},
        )
        assert "'bad' names version 2" in words
        assert "'worse' names version 3" in words
        assert "good" not in words

    @pytest.mark.parametrize("version", [-1, 2**63, "1", True])
    def test_label_of_an_impossible_version_is_refused(self, version):
        assert refusal(Model, base_path="/m", labels={"a": version})[0] == "labels.a"


class TestBatching:
    @pytest.mark.parametrize(
        "values",
        [
            {},
            {"max_batch_size": 8, "allowed_batch_sizes": [1, 4, 8]},
            {"allowed_batch_sizes": [1000]},
            {"max_batch_size": 8, "max_execution_batch_size": 8},
            {"max_execution_batch_size": 1000},
            {"max_batch_size": 2**31 - 1},
            {"batch_timeout_micros": 0},
            {"batch_timeout_micros": 2**63 - 1},
        ],
    )
    def test_sizes_that_agree_are_accepted(self, values):
        batching = Batching(**values)
        for key, value in values.items():
            assert getattr(batching, key) == (tuple(value) if isinstance(value, list) else value)

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"max_batch_size": 8, "allowed_batch_sizes": [1, 4]}, "4 != 8"),
            ({"allowed_batch_sizes": [4]}, "4 != 1000"),
            ({"max_batch_size": 4, "allowed_batch_sizes": [1, 8]}, "8 != 4"),
            ({"max_batch_size": 4, "allowed_batch_sizes": [2, 1, 4]}, "[2, 1, 4]"),
            ({"max_batch_size": 4, "allowed_batch_sizes": [1, 1, 4]}, "[1, 1, 4]"),
            ({"max_batch_size": 8, "max_execution_batch_size": 9}, "9, above max_batch_size 8"),
            ({"max_execution_batch_size": 1001}, "1001, above max_batch_size 1000"),
        ],
    )
    def test_sizes_that_contradict_are_refused_with_both_values(self, values, words):
        assert words in refusal(Batching, **values)[1]

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("max_batch_size", 0),
            ("max_batch_size", 2**31),
            ("batch_timeout_micros", -1),
            ("batch_timeout_micros", 2**63),
            ("max_enqueued_batches", 0),
            ("num_batch_threads", 0),
            ("max_execution_batch_size", 0),
            ("pad_variable_length_inputs", 1),
            ("enable_large_batch_splitting", "true"),
            ("thread_pool_name", 3),
        ],
    )
    def test_value_outside_its_range_is_refused(self, key, value):
        assert refusal(Batching, **{key: value})[0] == key


class TestServer:
    def test_equal_ports_are_refused_naming_them(self):
        assert "both 9000" in refusal(Server, grpc_port=9000, rest_port=9000)[1]

    def test_both_ports_may_be_found_by_the_kernel(self):
        server = Server(grpc_port=0, rest_port=0)
        assert (server.grpc_port, server.rest_port) == (0, 0)

    @pytest.mark.parametrize("name", ["a", "A9_.-", "0", "x" * 63])
    def test_name_for_a_server_is_accepted(self, name):
        assert Server(name=name).name == name

    @pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "x" * 64, "a\n", "é"])
    def test_name_that_is_no_file_name_is_refused(self, name):
        assert refusal(Server, name=name)[0] == "name"

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("grpc_port", -1),
            ("rest_port", 65536),
            ("grpc_port", "8500"),
            ("rest_port", True),
            ("engine", "docker?"),
            ("ready_timeout_s", 0),
            ("ready_timeout_s", -1.0),
            ("ready_timeout_s", "12"),
            ("ready_timeout_s", True),
            ("ready_timeout_s", float("nan")),
        ],
    )
    def test_value_outside_its_range_is_refused(self, key, value):
        assert refusal(Server, **{key: value})[0] == key

    @pytest.mark.parametrize("seconds", [0.5, 12])
    def test_whole_and_broken_seconds_are_seconds(self, seconds):
        assert Server(ready_timeout_s=seconds).ready_timeout_s == seconds


@pytest.mark.parametrize("path", ["metrics", "", "http://x/metrics"])
def test_monitoring_path_must_start_with_a_slash(path):
    assert refusal(Monitoring, path=path)[0] == "path"


@pytest.mark.parametrize("models", [{}, {"": MODEL}])
def test_deployment_needs_a_model_with_a_name(models):
    assert refusal(Spec, models=models)[0].startswith("models")


def test_model_needs_a_base_path():
    assert refusal(Model, base_path="")[0] == "base_path"


def test_other_platform_is_refused():
    assert refusal(Model, base_path="/m", platform="pytorch")[0] == "platform"
