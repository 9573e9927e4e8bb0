"""The deployment as data: defaults, deployment files, and what each section refuses."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from tfserve_kit.deployment import (
    Batching,
    Model,
    Monitoring,
    Server,
    Spec,
    VersionPolicy,
    build,
    load,
    render,
)
from tfserve_kit.errors import SpecError

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


@pytest.mark.parametrize("kind", Spec.__base__.__subclasses__(), ids=lambda kind: kind.__name__)
def test_every_field_is_described(kind):
    assert [name for name, field in kind.model_fields.items() if not field.description] == []


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


GOOD = """
[server]
name = "demo"
engine = "native"
grpc_port = 9000
rest_port = 9001
ready_timeout_s = 5

[server.flags]
num_load_threads = 2
per_process_gpu_memory_fraction = 0.5

[models.half]
base_path = "models/half"
versions = {specific = [1, 3]}
labels = {stable = 3}

[models."a b.c"]
base_path = "gs://bucket/../models"
versions = "all"

[batching]
max_batch_size = 4
allowed_batch_sizes = [1, 4]

[monitoring]
path = "/metrics"
"""


@pytest.fixture
def write(tmp_path):
    def write_file(text):
        file = tmp_path / "tfkit.toml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write_file


@pytest.fixture
def found_in(write):
    """Return the problems of a text, by path."""

    def find(text, **options):
        file = write(text)
        with pytest.raises(SpecError) as caught:
            load(file, **options)
        assert caught.value.source == str(file)
        assert len({problem.path for problem in caught.value.problems}) == len(
            caught.value.problems
        )
        return {problem.path: str(problem) for problem in caught.value.problems}

    return find


def spec_of(base_path, folder):
    return build({"models": {"m": {"base_path": base_path}}}, source="test", folder=folder)


class TestGoodFile:
    def test_every_section_arrives(self, write, tmp_path):
        spec = load(write(GOOD))
        assert (spec.server.name, spec.server.engine) == ("demo", "native")
        assert (spec.server.grpc_port, spec.server.rest_port) == (9000, 9001)
        assert spec.server.ready_timeout_s == 5.0
        assert spec.server.flags == {
            "num_load_threads": 2,
            "per_process_gpu_memory_fraction": 0.5,
        }
        assert spec.models.keys() == {"half", "a b.c"}
        assert spec.models["half"].base_path == str(tmp_path / "models" / "half")
        assert spec.models["half"].versions == VersionPolicy(specific=(1, 3))
        assert spec.models["half"].labels == {"stable": 3}
        assert spec.models["a b.c"].versions == VersionPolicy(all=True)
        assert spec.batching.allowed_batch_sizes == (1, 4)
        assert spec.monitoring.path == "/metrics"

    def test_file_that_init_writes_is_good(self, write, tmp_path):
        spec = load(write(render.text("tfkit.toml", {"name": "demo", "model": "half"})))
        assert spec.server.name == "demo"
        assert spec.models["half"].base_path == str(tmp_path / "models" / "half")
        assert isinstance(spec, Spec)

    def test_overrides_win_over_the_file_and_leave_the_rest(self, write):
        spec = load(write(GOOD), overrides={"server": {"grpc_port": 7}})
        assert (spec.server.grpc_port, spec.server.rest_port) == (7, 9001)

    def test_overrides_need_no_server_section(self, write):
        spec = load(write('[models.m]\nbase_path = "m"'), overrides={"server": {"name": "x"}})
        assert spec.server.name == "x"


class TestBasePath:
    @pytest.mark.parametrize(
        ("base_path", "resolved"),
        [
            ("models/m", "/deploy/models/m"),
            ("../m", "/m"),
            ("./a/./b/../c", "/deploy/a/c"),
            ("/abs/m", "/abs/m"),
            (".", "/deploy"),
            ("gs://bucket/m/../n", "gs://bucket/m/../n"),
            ("s3://bucket/m", "s3://bucket/m"),
        ],
    )
    def test_relative_path_starts_from_the_folder_of_the_file(self, tmp_path, base_path, resolved):
        folder = tmp_path / "deploy"
        found = spec_of(base_path, folder).models["m"].base_path
        if resolved.startswith(("/deploy", "/m")):
            resolved = str(tmp_path) + resolved
        assert found == resolved

    def test_home_folder_is_opened(self, tmp_path):
        home = Path.home().resolve()
        assert spec_of("~/m", tmp_path).models["m"].base_path == str(home / "m")

    @pytest.mark.parametrize(
        ("base_path", "name"),
        [("$HOME/m", "$HOME"), ("/data/${MODELS}/m", "${MODELS}"), ("%USERPROFILE%/m", "%USER")],
    )
    def test_variable_of_the_environment_is_told_to_be_none(self, found_in, base_path, name):
        (text,) = found_in(f'[models.m]\nbase_path = "{base_path}"').values()
        assert name in text and "write it out, or use ~" in text

    @pytest.mark.parametrize("base_path", ["a$b/m", "$/m", "m$"])
    def test_dollar_within_a_name_is_part_of_it(self, tmp_path, base_path):
        assert spec_of(base_path, tmp_path).models["m"].base_path == str(tmp_path / base_path)

    def test_folder_that_is_really_called_so_is_taken(self, tmp_path):
        (tmp_path / "$HOME").mkdir()
        assert spec_of("$HOME", tmp_path).models["m"].base_path == str(tmp_path / "$HOME")

    def test_byte_order_mark_is_passed_over(self, write, tmp_path):
        file = write('\ufeff[models.m]\nbase_path = "m"')
        assert load(file).models["m"].base_path == str(tmp_path / "m")

    def test_relative_folder_gives_an_absolute_path(self, write, tmp_path):
        file = Path(os.path.relpath(write('[models.m]\nbase_path = "m"')))
        assert not file.is_absolute()
        assert load(file).models["m"].base_path == str(tmp_path / "m")

    @pytest.mark.parametrize("base_path", ["a\\u0000b", "~no_such_user_here/m", "loop/m"])
    def test_text_that_is_no_path_is_refused_in_its_place(self, found_in, tmp_path, base_path):
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        found = found_in(f'[models.m]\nbase_path = "{base_path}"')
        assert found.keys() == {"models.m.base_path"}
        assert base_path.split("/")[0].split("\\")[0] in found["models.m.base_path"]


class TestBadFile:
    def test_all_problems_come_at_once_with_their_paths(self, found_in):
        found = found_in("""
            [server]
            nmae = "x"
            grpc_port = 70000
            host = 1
            [server.flags]
            num_load_thread = 1
            port = 3
            enable_batching = [true]
            num_unload_threads = [1]
            [models.a]
            versions = "newest"
            [models.b]
            base_path = "b"
            versions = {specific = [1]}
            labels = {stable = 2}
            [batching]
            max_batch_size = 4
            allowed_batch_sizes = [1, 2]
            [monitoring]
            path = "metrics"
        """)
        assert found.keys() == {
            "server.nmae",
            "server.grpc_port",
            "server.host",
            "server.flags.num_load_thread",
            "server.flags.port",
            "server.flags.enable_batching",
            "server.flags.num_unload_threads",
            "models.a.base_path",
            "models.a.versions",
            "models.b",
            "batching",
            "monitoring.path",
        }
        assert "70000" in found["server.grpc_port"]
        assert "write it in quotes" in found["server.host"]
        assert "add it" in found["models.a.base_path"]
        assert "2 != 4" in found["batching"]

    @pytest.mark.parametrize(
        ("section", "key", "nearest"),
        [
            ("", "batchin", "batching"),
            ("", "model", "models"),
            ("server", "grpc_prot", "grpc_port"),
            ("models.m", "base_pth", "base_path"),
            ("models.m", "version", "versions"),
            ("models.m.versions", "lates", "latest"),
            ("batching", "max_batchsize", "max_batch_size"),
            ("monitoring", "promethius", "prometheus"),
        ],
    )
    def test_unknown_key_names_the_nearest_on_every_level(self, found_in, section, key, nearest):
        head = f"[{section}]\n" if section else ""
        path = f"{section}.{key}" if section else key
        found = found_in(f"{head}{key} = 1")
        assert "not a known key" in found[path]
        assert f"did you mean {nearest}?" in found[path]

    def test_key_near_nothing_lists_those_that_are_known(self, found_in):
        text = found_in('[models.m]\nbase_path = "m"\n[monitoring]\nzzz = 1')["monitoring.zzz"]
        assert "choose one of: path, prometheus" in text

    @pytest.mark.parametrize(
        ("text", "path", "words"),
        [
            ("models = 3", "models", "3"),
            ("[models]\nm = 3", "models.m", "3"),
            ("server = 3", "server", "3"),
            ('[server]\nflags = "x"', "server.flags", "'x'"),
            ('batching = true\n[models.m]\nbase_path="m"', "batching", "True"),
            ("[models.m]\nbase_path = 2020-01-01", "models.m.base_path", "in quotes"),
            ('[models.m]\nbase_path="m"\nversions={latest=1.5}', "models.m.versions.latest", "1.5"),
            ("", "models", "add it"),
        ],
    )
    def test_value_of_another_kind_is_refused_in_its_place(self, found_in, text, path, words):
        assert words in found_in(text)[path]

    def test_section_of_another_kind_is_refused_with_overrides_too(self, found_in):
        text = 'server = 3\n[models.m]\nbase_path = "m"'
        assert found_in(text, overrides={"server": {"grpc_port": 1}}).keys() == {"server"}

    def test_wrong_override_is_refused_like_a_wrong_key(self, found_in):
        found = found_in('[models.m]\nbase_path = "m"', overrides={"server": {"grpc_port": -1}})
        assert found.keys() == {"server.grpc_port"}

    @pytest.mark.parametrize(
        ("text", "words"),
        [("[models\n", "line 1"), ("a = 1\na = 2\n", "line 2"), (b"\xff\xfe", "0xff")],
    )
    def test_file_that_is_no_toml_is_refused_with_the_place(self, found_in, text, words):
        text = found_in(text)[""]
        assert "is not TOML" in text
        assert words in text

    def test_remedy_for_another_encoding_is_not_another_syntax(self, tmp_path):
        (tmp_path / "tfkit.toml").write_bytes('[server]\nname = "a"\n'.encode("utf-16"))
        with pytest.raises(SpecError) as caught:
            load(tmp_path / "tfkit.toml")
        (problem,) = caught.value.problems
        assert problem.message == "is not TOML: it is not UTF-8, with 0xff at byte 0"
        assert problem.remedy == "save it as UTF-8"

    @pytest.mark.parametrize("text", ["server = 5\nmodels = {}", "models = []", "models.m = 'x'"])
    def test_value_in_place_of_a_section_is_told_so_in_words_of_the_file(self, tmp_path, text):
        (tmp_path / "tfkit.toml").write_text(text)
        with pytest.raises(SpecError) as caught:
            load(tmp_path / "tfkit.toml")
        problem = caught.value.problems[0]
        assert problem.message.startswith("input should be a section, but is ")
        assert problem.remedy == "write [NAME] above its keys, or {KEY = VALUE, ...}"

    def test_line_that_is_no_toml_is_shown_with_what_is_allowed(self, tmp_path):
        (tmp_path / "tfkit.toml").write_text("[models.m]\nbase_path = models/x\n")
        with pytest.raises(SpecError) as caught:
            load(tmp_path / "tfkit.toml")
        (problem,) = caught.value.problems
        assert problem.message.startswith("line 2, column 13: 'base_path = models/x' is not TOML: ")
        assert 'texts in quotes ("models/x")' in problem.remedy

    def test_secret_in_a_line_that_is_no_toml_is_not_shown(self, tmp_path):
        (tmp_path / "tfkit.toml").write_text("[client]\nheaders = {Authorization = hunter2hunter2}")
        with pytest.raises(SpecError) as caught:
            load(tmp_path / "tfkit.toml")
        assert "hunter2" not in str(caught.value)
        assert "headers = ***" in str(caught.value)

    def test_missing_file_is_an_os_error(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "tfkit.toml")


class TestHostileTexts:
    """Files that are no deployment, and mean harm."""

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("a = " + "[" * 100_000, "nested too deeply"),
            ("a = " + "{a = " * 100_000, "nested too deeply"),
            ("x = 1" + "0" * 5000, "is not TOML"),
            ("models" + ".a" * 5000 + " = 1", ""),
            ("[models.m]\nbase_path = 'm'\nlabels" + ".a" * 900 + " = 1", ""),
            ("[models.m]\nbase_path = '" + "a/" * 100_000 + "'", "not a path"),
            ('[models.m]\nbase_path = "a\\u0000b"', "not a path"),
        ],
    )
    def test_each_ends_in_a_refusal_of_bearable_length(self, tmp_path, text, said):
        (tmp_path / "tfkit.toml").write_text(text)
        with pytest.raises(SpecError) as caught:
            load(tmp_path / "tfkit.toml")
        assert said in str(caught.value)
        assert len(str(caught.value)) < 10_000

    def test_file_of_gigabytes_is_not_read(self, tmp_path):
        with (tmp_path / "tfkit.toml").open("wb") as stream:
            stream.truncate(3 << 30)
        with pytest.raises(SpecError, match="3,221,225,472 bytes"):
            load(tmp_path / "tfkit.toml")
