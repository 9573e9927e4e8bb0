"""Deployments become files that say exactly what the deployment says, or nothing at all."""

import shutil
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfserve_kit import protos
from tfserve_kit.deployment import Batching, Model, Monitoring, Spec, render
from tfserve_kit.deployment.flags import BATCHING_CONFIG, MODEL_CONFIG, MONITORING_CONFIG
from tfserve_kit.deployment.render import MESSAGES, _template_folder, pbtext
from tfserve_kit.errors import SpecError

FULL = Spec(
    models={
        "first": Model(base_path="/models/first", labels={"stable": 1, "canary": 2}),
        "second": Model(base_path="gs://bucket/second", versions={"specific": [3, 7]}),
        "third": Model(base_path="/models/third", versions="all"),
        "fourth": Model(base_path="/models/fourth", versions={"latest": 2}),
    },
    batching=Batching(
        max_batch_size=8,
        batch_timeout_micros=0,
        num_batch_threads=3,
        thread_pool_name="pool",
        allowed_batch_sizes=[2, 8],
        pad_variable_length_inputs=True,
        enable_large_batch_splitting=False,
    ),
    monitoring=Monitoring(path="/metrics"),
)
VERSION = st.integers(0, 2**63 - 1)
# Letters that end strings, blocks and Jinja tags are what could break out of its place.
TEXT = st.text(min_size=1) | st.text(st.sampled_from("\"'\\{}%#:\n\r\t\0 a1<>[]~"), min_size=1)
POLICIES = st.one_of(
    st.just("all"),
    st.builds(lambda n: {"latest": n}, st.integers(1, 2**31 - 1)),
    st.builds(lambda n: {"specific": n}, st.lists(VERSION, min_size=1, max_size=3)),
)


def settled(drawn):
    """Make the labels name a version that is loaded."""
    base_path, versions, labels = drawn
    if isinstance(versions, dict) and "specific" in versions:
        labels = dict.fromkeys(labels, versions["specific"][0])
    return base_path, versions, labels


def parsed(files):
    return {name: protos.from_text(MESSAGES[name], text) for name, text in files.items()}


def refusal(spec, templates=None):
    with pytest.raises(SpecError) as caught:
        render.render(spec, templates=templates)
    return caught.value


@pytest.fixture
def templates(tmp_path):
    return shutil.copytree(_template_folder(), tmp_path / "templates")


class TestFiles:
    def test_models_file_holds_every_model(self):
        message = parsed(render.render(FULL))[MODEL_CONFIG]
        configs = {config.name: config for config in message.model_config_list.config}
        assert list(configs) == list(FULL.models)
        assert {config.model_platform for config in configs.values()} == {"tensorflow"}
        assert configs["second"].base_path == "gs://bucket/second"
        assert dict(configs["first"].version_labels) == {"stable": 1, "canary": 2}
        assert dict(configs["third"].version_labels) == {}
        policies = {name: config.model_version_policy for name, config in configs.items()}
        assert policies["first"].latest.num_versions == 1
        assert list(policies["second"].specific.versions) == [3, 7]
        assert policies["third"].WhichOneof("policy_choice") == "all"
        assert policies["fourth"].latest.num_versions == 2

    def test_batching_file_holds_what_is_set_and_nothing_else(self):
        message = parsed(render.render(FULL))[BATCHING_CONFIG]
        assert message == protos.from_text(
            "BatchingParameters",
            """
            max_batch_size { value: 8 }
            batch_timeout_micros { value: 0 }
            num_batch_threads { value: 3 }
            thread_pool_name { value: "pool" }
            enable_large_batch_splitting { value: false }
            allowed_batch_sizes: [2, 8]
            pad_variable_length_inputs: true
            """,
        )

    @pytest.mark.parametrize("enabled", [True, False])
    def test_monitoring_file_holds_switch_and_path(self, enabled):
        spec = FULL.model_copy(update={"monitoring": Monitoring(prometheus=enabled, path="/x")})
        page = parsed(render.render(spec))[MONITORING_CONFIG].prometheus_config
        assert (page.enable, page.path) == (enabled, "/x")

    def test_sections_that_are_left_out_make_no_file(self):
        assert render.render(Spec(models=FULL.models)).keys() == {MODEL_CONFIG}

    def test_batching_without_values_makes_no_file_as_an_empty_one_stops_the_server(self):
        spec = Spec(models=FULL.models, batching=Batching())
        assert render.render(spec).keys() == {MODEL_CONFIG}


class TestAnyText:
    @settings(deadline=None)
    @given(
        st.dictionaries(
            TEXT,
            st.tuples(TEXT, POLICIES, st.dictionaries(TEXT, VERSION, max_size=2)).map(settled),
            min_size=1,
            max_size=3,
        )
    )
    def test_names_paths_and_labels_survive_exactly(self, drawn):
        models = {}
        for name, (base_path, versions, labels) in drawn.items():
            models[name] = Model(base_path=base_path, versions=versions, labels=labels)
        files = render.render(Spec(models=models))
        configs = parsed(files)[MODEL_CONFIG].model_config_list.config
        assert [
            (config.name, config.base_path, dict(config.version_labels)) for config in configs
        ] == [(name, model.base_path, model.labels) for name, model in models.items()]
        assert files[MODEL_CONFIG].isascii()

    @settings(deadline=None)
    @given(TEXT | st.just(""), TEXT)
    def test_thread_pool_name_and_monitoring_path_survive_exactly(self, name, path):
        spec = Spec(
            models=FULL.models,
            batching=Batching(thread_pool_name=name),
            monitoring=Monitoring(path=f"/{path}"),
        )
        files = parsed(render.render(spec))
        wanted = protos.BatchingParameters()
        wanted.thread_pool_name.value = name
        assert files[BATCHING_CONFIG] == wanted
        assert files[MONITORING_CONFIG].prometheus_config.path == f"/{path}"

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (True, "true"),
            (False, "false"),
            (-3, "-3"),
            (0.5, "0.5"),
            ("a b", '"a b"'),
            ("\"\\'", '"\\042\\134\\047"'),
            ("é\n\x7f", '"\\303\\251\\012\\177"'),
        ],
    )
    def test_scalar_is_written_as_the_text_format_wants_it(self, value, text):
        assert pbtext(value) == text

    @pytest.mark.parametrize("value", [None, [1], b"x"])
    def test_other_values_are_refused_naming_them(self, value):
        with pytest.raises(TypeError) as caught:
            pbtext(value)
        assert str(value) in str(caught.value)

    def test_text_that_utf8_lacks_is_refused(self):
        broken = FULL.models["first"].model_copy(update={"base_path": "/\udcff"})
        spec = FULL.model_copy(update={"models": {"m": broken}})
        assert "model_config.txt.j2" in str(refusal(spec))


class TestUserTemplates:
    def test_users_template_replaces_ours_and_the_others_stay(self, tmp_path):
        (tmp_path / f"{MODEL_CONFIG}.j2").write_text(
            "# by hand\n" + (_template_folder() / f"{MODEL_CONFIG}.j2").read_text()
        )
        files = render.render(FULL, templates=tmp_path)
        ours = render.render(FULL)
        assert files.pop(MODEL_CONFIG) == "# by hand\n" + ours.pop(MODEL_CONFIG)
        assert files == ours

    def test_template_may_add_what_the_deployment_does_not_say(self, templates):
        file = templates / f"{MONITORING_CONFIG}.j2"
        file.write_text(f"# more\n{file.read_text()}")
        assert "# more" in render.render(FULL, templates=templates)[MONITORING_CONFIG]

    def test_template_may_leave_out_what_the_server_takes_by_default(self, templates):
        file = templates / f"{MODEL_CONFIG}.j2"
        file.write_text(file.read_text().replace("num_versions: {{ model.versions.latest }}", ""))
        assert "num_versions" not in file.read_text()
        spec = Spec(models={"m": FULL.models["first"]})
        assert "latest" in render.render(spec, templates=templates)[MODEL_CONFIG]

    def test_folder_that_does_not_exist_is_refused(self, tmp_path):
        assert "not a folder of templates" in str(refusal(FULL, tmp_path / "typo"))
        assert str(tmp_path / "typo") in str(refusal(FULL, tmp_path / "typo"))

    def test_missing_template_is_refused_naming_it(self):
        with pytest.raises(SpecError, match=r"nothing\.txt\.j2"):
            render.text("nothing.txt", {})

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("{% for name in models %}", "line 1"),
            ("\n{{ 1 + }}", "line 2"),
            ("{{ nmae }}", "'nmae' is undefined"),
            ("{{ nmae | pbtext }}", "'nmae' is undefined"),
            ("{{ models.first.base_pth }}", "base_pth"),
            ("{{ models | pbtext }}", "not a scalar"),
            ("{{ 1 // 0 }}", "zero"),
            ("{{ 'x' | nofilter }}", "nofilter"),
            ("{{ [1] + 'x' }}", "list"),
            (b"\xff", "0xff"),
        ],
    )
    def test_broken_template_is_refused_naming_file_and_reason(self, tmp_path, content, words):
        file = tmp_path / f"{MODEL_CONFIG}.j2"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        text = str(refusal(FULL, tmp_path))
        assert f"template {file.name}" in text
        assert words in text

    @pytest.mark.parametrize("name", [MODEL_CONFIG, BATCHING_CONFIG, MONITORING_CONFIG])
    def test_result_that_does_not_parse_is_refused_with_the_line(self, tmp_path, name):
        (tmp_path / f"{name}.j2").write_text("\n\nnot_a_field: 1")
        error = refusal(FULL, tmp_path)
        assert error.source == f"rendered {name}"
        assert [problem.path for problem in error.problems] == ["line 3"]
        assert "not_a_field" in str(error)

    @pytest.mark.parametrize(
        ("name", "old", "new", "path", "words"),
        [
            (MODEL_CONFIG, "model.base_path |", "'/else' |", "models.first.base_path", "'/else'"),
            (MODEL_CONFIG, "name | pbtext", "('x' ~ name) | pbtext", "models", "first"),
            (MODEL_CONFIG, "models.items()", "(models.items() | list)[1:]", "models", "first"),
            (MODEL_CONFIG, "models.items()", "(models.items() | list) * 2", "models", "first"),
            (MODEL_CONFIG, "model.platform", "'other'", "models.first.platform", "'other'"),
            (MODEL_CONFIG, "model.versions.latest }}", "5 }}", "models.fourth.versions", "5"),
            (MODEL_CONFIG, "versions: {{ version }}", "versions: 9", "models.second.versions", "9"),
            (MODEL_CONFIG, "      all {}", "latest {}", "models.third.versions", "latest"),
            (MODEL_CONFIG, "value: {{ version }}", "value: 9", "models.first.labels", "9"),
            (MODEL_CONFIG, "label | pbtext", "'x' | pbtext", "models.first.labels", "x"),
            (BATCHING_CONFIG, "in wrapped", "in wrapped[1:]", "batching.max_batch_size", "None"),
            (BATCHING_CONFIG, " if batching[name] is not none", "", "", "None"),
            (BATCHING_CONFIG, "{{ size }}", "{{ size + 1 }}", "batching.allowed_batch_sizes", "3"),
            (BATCHING_CONFIG, ": true", ": false", "batching.pad_variable_length_inputs", "False"),
            (MONITORING_CONFIG, "monitoring.path", "'/x'", "monitoring.path", "'/x'"),
            (
                MONITORING_CONFIG,
                "monitoring.prometheus ",
                "false ",
                "monitoring.prometheus",
                "False",
            ),
        ],
    )
    def test_template_that_says_something_else_is_refused(
        self, templates, name, old, new, path, words
    ):
        file = templates / f"{name}.j2"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))
        error = refusal(FULL, templates)
        assert name in error.source
        assert path in {problem.path for problem in error.problems}
        assert words in str(error)

    def test_template_that_serves_nothing_is_refused(self, tmp_path):
        (tmp_path / f"{MODEL_CONFIG}.j2").write_text("")
        error = refusal(FULL, tmp_path)
        assert MODEL_CONFIG in error.source
        assert "first" in str(error)


@pytest.mark.parametrize("name", ["m", "a.b", 'quo"te', "new\nline", "größe", "\x7f", "{}#"])
def test_starter_file_holds_any_model_name(name, tmp_path):
    document = tomllib.loads(render.text("tfkit.toml", {"model": name, "name": "s"}))
    assert document["models"] == {name: {"base_path": f"models/{name}", "versions": "latest"}}
