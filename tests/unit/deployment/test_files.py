"""Deployment files: TOML that is good, and TOML with everything wrong at once."""

import os
from pathlib import Path

import pytest

from tfserve_kit.deployment import Spec, VersionPolicy, build, load, render
from tfserve_kit.errors import SpecError

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
        assert name in text and "write it out, or ~" in text

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
        assert "known: path, prometheus" in text

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
            ("[models.m]\nbase_path = '" + "a/" * 100_000 + "'", "no path"),
            ('[models.m]\nbase_path = "a\\u0000b"', "no path"),
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
