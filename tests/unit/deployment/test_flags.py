"""The flags of tensorflow_model_server: names, defaults, how they are read and written."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfserve_kit.deployment import Batching, Model, Monitoring, Server, Spec, flags
from tfserve_kit.deployment.flags import FLAGS, handler_threads, parse, problems, usage

CPUS = os.cpu_count()
THREADS = handler_threads()
# The defaults of tensorflow_serving/model_servers/server.h and main.cc.
DEFAULTS = {
    "port": 8500,
    "grpc_socket_path": "",
    "rest_api_port": 0,
    "rest_api_num_threads": 4 * CPUS,
    "rest_api_timeout_in_ms": 30000,
    "rest_api_enable_cors_support": False,
    "enable_batching": False,
    "batching_parameters_file": "",
    "enable_per_model_batching_parameters": False,
    "allow_version_labels_for_unavailable_models": False,
    "model_config_file": "",
    "model_config_file_poll_wait_seconds": 0,
    "model_name": "default",
    "model_base_path": "",
    "num_load_threads": 0,
    "num_unload_threads": 0,
    "max_num_load_retries": 5,
    "load_retry_interval_micros": 60_000_000,
    "file_system_poll_wait_seconds": 1,
    "flush_filesystem_caches": True,
    "tensorflow_session_parallelism": 0,
    "tensorflow_intra_op_parallelism": 0,
    "tensorflow_inter_op_parallelism": 0,
    "tensorflow_session_config_file": "",
    "platform_config_file": "",
    "per_process_gpu_memory_fraction": 0.0,
    "saved_model_tags": "serve",
    "ssl_config_file": "",
    "use_alts_credentials": False,
    "grpc_channel_arguments": "",
    "grpc_max_threads": 4 * CPUS,
    "enable_model_warmup": True,
    "num_request_iterations_for_warmup": 0,
    "monitoring_config_file": "",
    "remove_unused_fields_from_bundle_metagraph": True,
    "prefer_tflite_model": False,
    "num_tflite_pools": CPUS,
    "num_tflite_interpreters_per_pool": 1,
    "enable_signature_method_name_check": False,
    "enable_profiler": True,
    "xla_cpu_compilation_enabled": False,
    "xla_gpu_compilation_enabled": False,
    "mixed_precision": "",
    "thread_pool_factory_config_file": "",
    "skip_initialize_tpu": False,
    "enable_grpc_healthcheck_service": False,
    "enable_serialization_as_tensor_content": False,
    "version": False,
}


def values_of(kind):
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(-(2**31), 2**31 - 1)
    return st.floats(allow_nan=False) if kind is float else st.text()


FLAG_VALUES = st.fixed_dictionaries(
    {}, optional={name: values_of(type(default)) for name, (default, _) in FLAGS.items()}
)


def deployment(**sections):
    models = {"m": Model(base_path="/models/m", **sections.pop("model", {}))}
    return Spec(models=models, **sections)


class TestParse:
    def test_empty_command_line_gives_the_defaults_of_the_official_server(self):
        line = parse([])
        assert line.values == DEFAULTS
        assert {name: type(value) for name, value in line.values.items()} == {
            name: type(value) for name, value in DEFAULTS.items()
        }
        assert (line.unknown, line.error) == ((), "")

    @pytest.mark.parametrize(
        ("argument", "name", "value"),
        [
            ("--enable_batching", "enable_batching", True),
            ("--enable_batching=true", "enable_batching", True),
            ("--enable_batching=True", "enable_batching", True),
            ("--enable_batching=1", "enable_batching", True),
            ("--enable_profiler=false", "enable_profiler", False),
            ("--enable_profiler=False", "enable_profiler", False),
            ("--enable_profiler=0", "enable_profiler", False),
            ("--port=9000", "port", 9000),
            ("--port=-1", "port", -1),
            ("--port=+9", "port", 9),
            ("--port= 9", "port", 9),
            ("--port=0010", "port", 10),
            ("--model_name=", "model_name", ""),
            ("--model_name=a=b", "model_name", "a=b"),
            ("--model_name=--port=1", "model_name", "--port=1"),
            ("--per_process_gpu_memory_fraction=0.5", "per_process_gpu_memory_fraction", 0.5),
            ("--per_process_gpu_memory_fraction=1", "per_process_gpu_memory_fraction", 1.0),
            ("--per_process_gpu_memory_fraction=5e-1", "per_process_gpu_memory_fraction", 0.5),
        ],
    )
    def test_value_is_read_and_nothing_else_changes(self, argument, name, value):
        line = parse([argument])
        assert line.values == DEFAULTS | {name: value}
        assert type(line.values[name]) is type(DEFAULTS[name])
        assert (line.unknown, line.error) == ((), "")

    def test_last_of_several_wins(self):
        line = parse(["--port=1", "--enable_batching", "--port=2", "--enable_batching=false"])
        assert (line.values["port"], line.values["enable_batching"]) == (2, False)

    @pytest.mark.parametrize(
        "argument",
        [
            "--max_batch_size=10",
            "-port=1",
            "port=1",
            "hello",
            "--nouse_alts_credentials",
            "--port",
            "--model_name",
            "---port=1",
            "--",
            "--=1",
            "--PORT=1",
            "--port =1",
            "--help",
            "",
        ],
    )
    def test_argument_that_is_no_flag_is_kept_and_changes_nothing(self, argument):
        line = parse([argument, "--port=7"])
        assert line.unknown == (argument,)
        assert line.values == DEFAULTS | {"port": 7}
        assert not line.error

    def test_value_after_a_space_is_no_value(self):
        line = parse(["--model_name", "m", "--enable_batching", "false"])
        assert line.unknown == ("--model_name", "m", "false")
        assert line.values["model_name"] == "default"
        assert line.values["enable_batching"] is True

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("port", "abc"),
            ("port", ""),
            ("port", " "),
            ("port", "1.5"),
            ("port", "0x1f"),
            ("port", "1_000"),
            ("port", "9 "),
            ("port", "\uff19"),
            ("port", "--9"),
            ("load_retry_interval_micros", "1s"),
            ("per_process_gpu_memory_fraction", "half"),
            ("per_process_gpu_memory_fraction", "0_5"),
            ("per_process_gpu_memory_fraction", "0.5 "),
            ("enable_batching", "yes"),
            ("enable_batching", ""),
            ("enable_batching", "2"),
            ("enable_batching", " true"),
        ],
    )
    def test_value_that_does_not_fit_ends_parsing_with_an_error(self, name, text):
        line = parse(["--model_name=before", f"--{name}={text}", "--model_name=after"])
        assert name in line.error
        assert f" {text} " in line.error
        assert line.values == DEFAULTS | {"model_name": "before"}

    def test_error_text_is_the_official_one(self):
        line = parse(["--rest_api_num_threads=abc"])
        assert line.error == "Couldn't interpret value abc for flag rest_api_num_threads."


class TestArgv:
    def test_plain_deployment_names_ports_and_the_model_file(self):
        assert deployment().argv(["model_config.txt"], "/cfg") == [
            "--port=8500",
            "--rest_api_port=8501",
            f"--grpc_max_threads={THREADS}",
            f"--rest_api_num_threads={THREADS}",
            "--model_config_file=/cfg/model_config.txt",
        ]

    def test_full_deployment_names_every_file(self):
        spec = deployment(
            server=Server(grpc_port=1, rest_port=2), batching=Batching(), monitoring=Monitoring()
        )
        files = ["model_config.txt", "batching_config.txt", "monitoring_config.txt"]
        assert set(spec.argv(files, Path("/cfg"))) == {
            "--port=1",
            "--rest_api_port=2",
            f"--grpc_max_threads={THREADS}",
            f"--rest_api_num_threads={THREADS}",
            "--enable_batching=true",
            "--model_config_file=/cfg/model_config.txt",
            "--batching_parameters_file=/cfg/batching_config.txt",
            "--monitoring_config_file=/cfg/monitoring_config.txt",
        }

    def test_batching_without_values_needs_no_file(self):
        line = deployment(batching=Batching()).argv(["model_config.txt"], "/cfg")
        assert "--enable_batching=true" in line
        assert not any("batching_parameters_file" in argument for argument in line)

    def test_labels_are_allowed_before_their_versions_are_loaded(self):
        flag = "--allow_version_labels_for_unavailable_models=true"
        assert flag in deployment(model={"labels": {"stable": 1}}).argv([], "/cfg")
        assert flag not in deployment().argv([], "/cfg")

    def test_unknown_file_is_a_key_error(self):
        with pytest.raises(KeyError, match="else"):
            deployment().argv(["else.txt"], "/cfg")

    @settings(deadline=None)
    @given(FLAG_VALUES)
    def test_extra_flags_reach_the_server_as_they_are(self, extra):
        spec = deployment(server=Server(flags=extra))
        line = parse(spec.argv([], "/cfg"))
        ports = {"port": 8500, "rest_api_port": 8501}
        threads = {"grpc_max_threads": THREADS, "rest_api_num_threads": THREADS}
        assert line.values == DEFAULTS | ports | threads | extra
        assert (line.unknown, line.error) == ((), "")

    @pytest.mark.parametrize(("cpus", "threads"), [(1, 64), (2, 64), (16, 64), (32, 128)])
    def test_handler_threads_carry_a_real_load_and_are_never_fewer_than_the_servers_own(
        self, cpus, threads
    ):
        assert handler_threads(cpus) == threads

    def test_handler_threads_of_the_deployment_win(self):
        line = deployment(server=Server(flags={"grpc_max_threads": 3})).argv([], "/cfg")
        assert [each for each in line if "grpc_max_threads" in each] == ["--grpc_max_threads=3"]


class TestProblems:
    @staticmethod
    def found_in(values):
        return {problem.path: str(problem) for problem in problems(values)}

    def test_good_flags_have_none(self):
        good = {
            "num_load_threads": 1,
            "enable_model_warmup": False,
            "per_process_gpu_memory_fraction": 0.5,
            "saved_model_tags": "train",
        }
        assert problems(good) == []

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [
            ("num_load_thread", "num_load_threads"),
            ("enable_warmup", "enable_model_warmup"),
            ("grpc-max-threads", "grpc_max_threads"),
        ],
    )
    def test_unknown_flag_is_refused_naming_the_nearest(self, name, nearest):
        text = self.found_in({name: 1})[f"server.flags.{name}"]
        assert "not a flag of tensorflow_model_server" in text
        assert f"did you mean {nearest}?" in text

    @pytest.mark.parametrize(
        "name",
        [
            "port",
            "rest_api_port",
            "model_config_file",
            "model_name",
            "model_base_path",
            "enable_batching",
            "batching_parameters_file",
            "monitoring_config_file",
            "version",
        ],
    )
    def test_flag_with_a_section_of_its_own_is_refused(self, name):
        text = self.found_in({name: flags.DEFAULTS[name]})[f"server.flags.{name}"]
        assert "other sections" in text
        assert "remove it" in text

    @pytest.mark.parametrize(
        ("name", "value", "kind"),
        [
            ("num_load_threads", "1", "an integer"),
            ("num_load_threads", True, "an integer"),
            ("num_load_threads", 1.0, "an integer"),
            ("enable_model_warmup", 1, "must be true or false"),
            ("enable_model_warmup", "true", "must be true or false"),
            ("saved_model_tags", 1, "a text"),
            ("per_process_gpu_memory_fraction", True, "a number"),
            ("per_process_gpu_memory_fraction", "0.5", "a number"),
            ("num_load_threads", [1], "an integer"),
        ],
    )
    def test_value_of_another_type_is_refused_naming_both(self, name, value, kind):
        text = self.found_in({name: value})[f"server.flags.{name}"]
        assert repr(value) in text
        assert kind in text

    def test_whole_number_fits_a_fraction(self):
        assert problems({"per_process_gpu_memory_fraction": 1}) == []

    def test_all_problems_are_reported_at_once(self):
        found = self.found_in({"port": 1, "prt": 2, "num_load_threads": "x", "mixed_precision": ""})
        assert found.keys() == {
            f"server.flags.{name}" for name in ("port", "prt", "num_load_threads")
        }


def test_usage_lists_every_flag_with_default_and_type():
    lines = usage().splitlines()
    listed = {line.split("=", 1)[0].strip().removeprefix("--"): line for line in lines[2:]}
    assert listed.keys() == FLAGS.keys()
    for name, start, kind in [
        ("port", "--port=8500 ", "int32"),
        ("flush_filesystem_caches", "--flush_filesystem_caches=true ", "bool"),
        ("model_name", '--model_name="default" ', "string"),
        ("per_process_gpu_memory_fraction", "--per_process_gpu_memory_fraction=0.0 ", "float"),
    ]:
        assert listed[name].strip().startswith(start)
        assert listed[name].split("\t")[2] == kind
        assert listed[name].split("\t")[3] == flags.FLAGS[name][1]
