"""From flags to settings: what is taken over, what is refused and in which words."""

import logging

import pytest

from tfserve_kit import protos
from tfserve_kit.deployment import flags
from tfserve_kit.embedded.batching import BatchOptions
from tfserve_kit.embedded.settings import (
    REFUSED,
    BatchSettings,
    SessionOptions,
    Tls,
    check_changes,
    check_logging,
    check_models,
    check_platforms,
    from_flags,
    platform_of,
    prometheus_path,
    read_models,
    read_text_proto,
)
from tfserve_kit.embedded.status import Code, ServingError

# Flags that name a file which is read at once.
FILES = {
    "model_config_file",
    "batching_parameters_file",
    "platform_config_file",
    "ssl_config_file",
    "tensorflow_session_config_file",
}
ACCEPTED = sorted(flags.FLAGS.keys() - REFUSED.keys() - FILES - {"model_base_path", "port"})
BASE = "--model_base_path=/models/m"


def settings(*arguments):
    line = flags.parse(arguments)
    assert not (line.unknown or line.error), "the test's own arguments"
    return from_flags(line.values, bind_address="127.0.0.1")


def threads(intra, inter):
    config = protos.ConfigProto(
        intra_op_parallelism_threads=intra, inter_op_parallelism_threads=inter
    )
    return SessionOptions(config=config)


def refusal(*arguments):
    with pytest.raises(ServingError) as caught:
        settings(*arguments)
    return caught.value


def other_value(name):
    default = flags.DEFAULTS[name]
    if isinstance(default, bool):
        return not default
    return default + 1 if isinstance(default, int | float) else "some=where"


@pytest.fixture
def config_file(tmp_path):
    """Write a ModelServerConfig; return the flag that names it."""

    def write(text):
        file = tmp_path / "models.config"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return f"--model_config_file={file}"

    return write


def one_model(fields):
    return f"model_config_list {{ config {{ {fields} }} }}"


# Flags


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_flag_that_the_engine_does_not_have_is_refused_by_name(name):
    error = refusal(BASE, f"--{name}={str(other_value(name)).lower()}")
    assert error.code is Code.UNIMPLEMENTED
    assert error.message.startswith(f"the embedded engine does not have the flag --{name}: ")


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_flag_that_the_engine_does_not_have_may_be_given_its_default(name):
    settings(BASE, f"--{name}={str(flags.DEFAULTS[name]).lower()}")


@pytest.mark.parametrize("name", ACCEPTED)
def test_flag_that_the_engine_has_is_accepted(name):
    settings(BASE, f"--{name}={str(other_value(name)).lower()}")


def test_defaults_are_those_of_the_official_server():
    found = settings(BASE)
    assert (found.grpc_port, found.rest_port, found.bind_address) == (8500, None, "127.0.0.1")
    assert (found.poll_wait_s, found.max_load_retries, found.load_retry_interval_s) == (1, 5, 60)
    assert found.load_threads == 1
    assert found.session == SessionOptions()
    assert (found.batching, found.tls, found.cors, found.health) == (None, None, False, False)
    assert (found.rest_timeout_s, found.warmup_passes) == (30, 1)
    assert found.answer_with_content is False


@pytest.mark.parametrize(
    ("flag", "attribute", "expected"),
    [
        ("port=1234", "grpc_port", 1234),
        ("rest_api_port=99", "rest_port", 99),
        ("rest_api_port=0", "rest_port", None),
        ("grpc_max_threads=3", "grpc_threads", 3),
        ("grpc_max_threads=0", "grpc_threads", 1),
        ("rest_api_num_threads=5", "rest_threads", 5),
        ("rest_api_timeout_in_ms=50", "rest_timeout_s", 0.05),
        ("rest_api_enable_cors_support", "cors", True),
        ("grpc_socket_path=/s", "grpc_socket_path", "/s"),
        ("grpc_channel_arguments=a=1,b=x", "grpc_channel_arguments", (("a", 1), ("b", "x"))),
        ("enable_grpc_healthcheck_service", "health", True),
        ("enable_signature_method_name_check", "check_method_name", True),
        ("allow_version_labels_for_unavailable_models", "allow_labels_for_unavailable", True),
        ("enable_model_warmup=false", "warmup_passes", 0),
        ("num_request_iterations_for_warmup=3", "warmup_passes", 3),
        ("enable_batching", "batching", BatchSettings()),
        ("file_system_poll_wait_seconds=-1", "poll_wait_s", -1),
        ("file_system_poll_wait_seconds=0", "poll_wait_s", 0),
        ("max_num_load_retries=0", "max_load_retries", 0),
        ("load_retry_interval_micros=1500000", "load_retry_interval_s", 1.5),
        ("num_load_threads=0", "load_threads", 1),
        ("num_load_threads=4", "load_threads", 4),
        ("enable_serialization_as_tensor_content", "answer_with_content", True),
        ("saved_model_tags=serve,gpu", "session", SessionOptions(("serve", "gpu"))),
        ("saved_model_tags=,", "session", SessionOptions(())),
        ("tensorflow_session_parallelism=3", "session", threads(3, 3)),
        ("tensorflow_intra_op_parallelism=3", "session", threads(3, 0)),
        ("tensorflow_inter_op_parallelism=3", "session", threads(0, 3)),
    ],
)
def test_flag_becomes_the_setting(flag, attribute, expected):
    assert getattr(settings(BASE, f"--{flag}"), attribute) == expected


def test_single_model_has_the_name_and_base_path_of_the_flags():
    (model,) = settings(BASE, "--model_name=m").models
    assert (model.name, model.base_path) == ("m", "/models/m")


def test_all_three_parallelism_flags_contradict():
    names = ("session", "intra_op", "inter_op")
    error = refusal(BASE, *(f"--tensorflow_{name}_parallelism=2" for name in names))
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message == (
        "Either configure server_options.tensorflow_session_parallelism or "
        "(server_options.tensorflow_intra_op_parallelism, "
        "server_options.tensorflow_inter_op_parallelism) separately. You cannot configure all."
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [BASE, "--port=0"],
            "At least one of server_options.grpc_port or server_options.grpc_socket_path "
            "must be set.",
        ),
        (
            ["--model_name=m"],
            "Both server_options.model_base_path and server_options.model_config_file are empty!",
        ),
        (
            ["--model_name=m", "--model_base_path=m"],
            "Expected model m to have an absolute path or URI; got base_path()=m",
        ),
    ],
)
def test_flags_that_the_official_server_refuses_are_refused_in_its_words(arguments, message):
    error = refusal(*arguments)
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, message)


# The configuration file


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("model_config_list {}", []),
        (one_model('name: "m" base_path: "/m" model_platform: "tensorflow"'), ["m"]),
        (one_model('name: "m" base_path: "gs://b/m" model_platform: "tensorflow"'), ["m"]),
        (one_model('name: "m" base_path: "/m" model_type: TENSORFLOW'), ["m"]),
        (one_model('base_path: "/m" model_platform: "tensorflow"'), [""]),
        (
            'model_config_list: { config: [ { name: "a", base_path: "/m", '
            'model_platform: "tensorflow", }, { name: "b", base_path: "/m", '
            'model_platform: "tensorflow" } ] }',
            ["a", "b"],
        ),
    ],
    ids=["empty-list", "one", "uri", "old-type", "no-name", "colons-commas-same-path"],
)
def test_config_file_names_the_models(config_file, text, names):
    assert [model.name for model in settings(config_file(text)).models] == names


def test_config_file_wins_over_the_single_model_flags(config_file):
    text = one_model('name: "m" base_path: "/m" model_platform: "tensorflow"')
    found = settings(config_file(text), "--model_name=zzz", "--model_base_path=/nothere")
    assert [model.name for model in found.models] == ["m"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "FILE; Invalid argument"),
        ('{"model_config_list": {"config": []}}', "Invalid protobuf file: 'FILE'"),
        ("model_config_list { config { nam: 1 } }", "Invalid protobuf file: 'FILE'"),
        ("model_config_list {", "Invalid protobuf file: 'FILE'"),
        (b"model_config_list { config { name: '\xff' } }", "Invalid protobuf file: 'FILE'"),
        (
            'custom_model_config { type_url: "type.googleapis.com/tensorflow.serving.ModelSpec" }',
            "ModelServer does not yet support custom model config.",
        ),
        (
            one_model('name: "m" model_platform: "tensorflow"'),
            "Expected model m to have an absolute path or URI; got base_path()=",
        ),
        (
            one_model('name: "m" base_path: "models/m" model_platform: "tensorflow"'),
            "Expected model m to have an absolute path or URI; got base_path()=models/m",
        ),
        (
            one_model(
                'name: "m" base_path: "/m" model_platform: "tensorflow" '
                "logging_config { sampling_config { sampling_rate: 1 } }"
            ),
            "No request-logger-creator provided.",
        ),
        (
            one_model('name: "m" base_path: "/m" model_platform: "tensorflow" } config { '
                      'name: "m" base_path: "/n" model_platform: "tensorflow"'),
            "Illegal to list model m multiple times in config list",
        ),
        (
            one_model('name: "m" base_path: "/m"'),
            "Illegal setting neither ModelServerConfig::model_type (deprecated) "
            "nor ModelServerConfig::model_platform, model name is m",
        ),
        (
            one_model('name: "m" base_path: "/m" model_platform: "x" model_type: TENSORFLOW'),
            "Illegal setting both ModelServerConfig::model_type (deprecated) "
            "and ModelServerConfig::model_platform, model name is m",
        ),
        (
            one_model('name: "m" base_path: "/m" model_type: OTHER'),
            "ModelServerConfig::model_type choice 2 not supported.",
        ),
        (
            one_model('name: "m" base_path: "/m" model_platform: "torch"'),
            "Model m requests unsupported platform torch",
        ),
    ],
)  # fmt: skip
def test_config_file_that_the_official_server_refuses_is_refused_in_its_words(
    config_file, text, message
):
    flag = config_file(text)
    error = refusal(flag)
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message == message.replace("FILE", flag.partition("=")[2])


def test_config_file_that_does_not_exist_is_not_found(tmp_path):
    error = refusal(f"--model_config_file={tmp_path}/none")
    assert error.code is Code.NOT_FOUND
    assert error.message == f"{tmp_path}/none; No such file or directory"


# Further files


@pytest.fixture
def written(tmp_path):
    """Write a file; return its path."""

    def write(text):
        file = tmp_path / "file.config"
        file.write_text(text)
        return file

    return write


def test_batching_file_fills_in_the_official_defaults(written):
    file = written("max_batch_size { value: 8 } num_batch_threads { value: 3 }")
    found = settings(BASE, "--enable_batching", f"--batching_parameters_file={file}").batching
    assert (found.threads, found.thread_pool_name) == (3, "model_server_batch_threads")
    assert found.options == BatchOptions(max_batch_size=8, max_execution_batch_size=8)


def test_batching_file_without_batching_is_refused(written):
    file = written("max_batch_size { value: 8 }")
    error = refusal(BASE, f"--batching_parameters_file={file}")
    assert "batching_parameters_file is set without" in error.message


@pytest.mark.parametrize(("text", "message"), [
    ("num_batch_threads { value: 0 }", "num_batch_threads must be positive; was 0"),
    ("max_batch_size { value: 4 } allowed_batch_sizes: 2",
     "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 2; expected 4"),
])  # fmt: skip
def test_batching_values_that_cannot_work_are_refused(written, text, message):
    flag = f"--batching_parameters_file={written(text)}"
    assert refusal(BASE, "--enable_batching", flag).message == message


def test_tls_file_becomes_certificates(written):
    file = written('server_key: "KEY" server_cert: "CERT" custom_ca: "CA" client_verify: true')
    assert settings(BASE, f"--ssl_config_file={file}").tls == Tls(b"KEY", b"CERT", b"CA", True)


def test_session_config_file_wins_over_the_thread_flags(written):
    file = written("intra_op_parallelism_threads: 5")
    found = settings(
        BASE, f"--tensorflow_session_config_file={file}", "--tensorflow_session_parallelism=2"
    )
    assert found.session.config.intra_op_parallelism_threads == 5


def test_platform_file_replaces_batching_and_parallelism(written):
    adapter = "type.googleapis.com/tensorflow.serving.SavedModelBundleSourceAdapterConfig"
    file = written(
        'platform_configs { key: "tensorflow" value { source_adapter_config { ['
        + adapter
        + "] { legacy_config { saved_model_tags: 'gpu' enable_model_warmup: true "
        "batching_parameters { max_batch_size { value: 16 } } } } } } }"
    )
    found = settings(BASE, f"--platform_config_file={file}", "--tensorflow_session_parallelism=2")
    assert found.session.tags == ("gpu",)
    assert found.batching.options.max_batch_size == 16
    assert found.session.config.intra_op_parallelism_threads == 0


def test_ports_that_are_equal_leave_rest_off():
    found = settings(BASE, "--port=99", "--rest_api_port=99")
    assert (found.grpc_port, found.rest_port) == (99, None)


@pytest.mark.parametrize("threads", [0, 10_001])
def test_thread_counts_the_official_server_crashes_on_are_refused(threads):
    assert "rest_api_num_threads" in refusal(BASE, f"--rest_api_num_threads={threads}").message


@pytest.mark.parametrize("threads", [1, 10_000])
def test_thread_counts_up_to_the_limit_are_accepted(threads):
    assert settings(BASE, f"--rest_api_num_threads={threads}").rest_threads == threads


def test_one_batch_thread_is_enough(written):
    flag = f"--batching_parameters_file={written('num_batch_threads { value: 1 }')}"
    assert settings(BASE, "--enable_batching", flag).batching.threads == 1


@pytest.mark.parametrize(
    ("given", "taken", "warned"), [("bfloat16", "bfloat16", False), ("fp4", "", True)]
)
def test_mixed_precision_other_than_bfloat16_is_left_out_with_a_warning(
    caplog, given, taken, warned
):
    assert settings(BASE, f"--mixed_precision={given}").session.mixed_precision == taken
    assert ("fp4 auto mixed precision is not supported" in caplog.text) == warned


@pytest.mark.parametrize(
    ("warmup", "passes"),
    [
        ("", 0),
        ("enable_model_warmup: true", 1),
        ("enable_model_warmup: true model_warmup_options { num_request_iterations { value: 3 } }",
         3),
    ],
)  # fmt: skip
def test_platform_file_says_how_often_stored_requests_are_replayed(written, warmup, passes):
    adapter = "type.googleapis.com/tensorflow.serving.SavedModelBundleSourceAdapterConfig"
    file = written(
        'platform_configs { key: "tensorflow" value { source_adapter_config { ['
        f"{adapter}] {{ legacy_config {{ {warmup} }} }} }} }} }}"
    )
    found = settings(BASE, f"--platform_config_file={file}")
    assert (found.warmup_passes, found.batching) == (passes, None)


@pytest.mark.parametrize(("text", "path"), [
    ("prometheus_config { enable: true path: '/metrics' }", "/metrics"),
    ("prometheus_config { enable: true }", "/monitoring/prometheus/metrics"),
    ("prometheus_config { path: '/metrics' }", None),
])  # fmt: skip
def test_monitoring_file_says_where_the_metrics_are(written, text, path):
    assert prometheus_path(str(written(text))) == path


# Configuration files in text format, and lists of models that are refused.


GOOD = 'name: "m" base_path: "/m" model_platform: "tensorflow"'


def config(text=GOOD):
    return protos.from_text("ModelConfig", text)


def refused_config(call, *arguments):
    with pytest.raises(ServingError) as caught:
        call(*arguments)
    return caught.value


@pytest.fixture
def text_file(tmp_path):
    """Write a file and return its path as a string."""

    def write(content):
        file = tmp_path / "models.config"
        file.write_bytes(content.encode("utf-8", "surrogateescape"))
        return str(file)

    return write


# Files


def test_file_is_read_as_the_message_asked_for(text_file):
    found = read_text_proto("BatchingParameters", text_file("max_batch_size { value: 3 }"))
    assert found == protos.BatchingParameters(max_batch_size={"value": 3})


def test_file_that_is_not_there_is_not_found(tmp_path):
    file = str(tmp_path / "nope")
    error = refused_config(read_text_proto, "BatchingParameters", file)
    assert error.code is Code.NOT_FOUND
    assert error.message == f"{file}; No such file or directory"


@pytest.mark.parametrize(
    ("content", "text"),
    [("", "{file}; Invalid argument"), ("nope: 1", "Invalid protobuf file: '{file}'")],
)
def test_file_that_cannot_be_used_is_refused(text_file, content, text):
    file = text_file(content)
    error = refused_config(read_text_proto, "BatchingParameters", file)
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message == text.format(file=file)


def test_reason_of_the_parser_goes_to_the_log_with_the_line(text_file, caplog):
    with caplog.at_level(logging.ERROR):
        refused_config(read_text_proto, "BatchingParameters", text_file("\nnope: 1"))
    assert "tensorflow.serving.BatchingParameters: 2:" in caplog.text


def test_models_of_a_file_come_in_order(text_file):
    other = GOOD.replace('"m"', '"a"')
    file = text_file(f"model_config_list {{ config {{ {GOOD} }} config {{ {other} }} }}")
    assert [each.name for each in read_models(file)] == ["m", "a"]


def test_file_without_models_is_an_empty_list(text_file):
    assert read_models(text_file("model_config_list {}")) == ()


def test_models_of_a_file_are_checked(text_file):
    file = text_file(f"model_config_list {{ config {{ {GOOD} }} config {{ {GOOD} }} }}")
    assert "multiple times" in refused_config(read_models, file).message


def test_custom_configuration_is_refused(text_file):
    error = refused_config(read_models, text_file("custom_model_config {}"))
    assert error.message == "ModelServer does not yet support custom model config."


# Models


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        'name: "m" base_path: "gs://b/m" model_platform: "tensorflow"',
        'name: "" base_path: "/" model_platform: "tensorflow"',
        'name: "m" base_path: "/m" model_platform: "other"',
        'name: "m" base_path: "/m" model_type: TENSORFLOW',
        'name: "m" base_path: "file:///m" model_platform: "tensorflow"',
        'name: "m" base_path: "s3.x9://b" model_platform: "tensorflow"',
        # Looked at later, or not at all.
        'name: "m" base_path: "/m"',
        'name: "m" base_path: "/m" model_type: OTHER',
        GOOD + " logging_config {}",
    ],
)
def test_good_model_is_accepted(text):
    check_models([config(text)])
    check_models([config(text), config(GOOD.replace('"m"', '"b"'))])


@pytest.mark.parametrize(
    "path", ["", "m", "./m", "~/m", "1a://m", "a-b://m", "a_b://m", "://m", "a:/m", "a b://m"]
)
def test_base_path_that_is_relative_is_refused_wherever_it_stands(path):
    relative = protos.ModelConfig(name="m", base_path=path, model_platform="tensorflow")
    for configs in ([relative], [config(GOOD.replace('"m"', '"b"')), relative]):
        error = refused_config(check_models, configs)
        assert error.code is Code.INVALID_ARGUMENT
        assert error.message == (
            f"Expected model m to have an absolute path or URI; got base_path()={path}"
        )


def test_name_may_be_listed_once_and_that_is_looked_at_before_any_path():
    error = refused_config(check_models, [config(GOOD.replace("/m", "m")), config()])
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message == "Illegal to list model m multiple times in config list"


NEITHER = (
    "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
    "ModelServerConfig::model_platform, model name is m"
)
BOTH = (
    "Illegal setting both ModelServerConfig::model_type (deprecated) and "
    "ModelServerConfig::model_platform, model name is m"
)
PLATFORMS = [
    ('model_platform: "other"', "Model m requests unsupported platform other"),
    ('model_platform: "Tensorflow"', "Model m requests unsupported platform Tensorflow"),
    ('model_platform: "tensorflow "', "Model m requests unsupported platform tensorflow "),
    ("model_type: OTHER", "ModelServerConfig::model_type choice 2 not supported."),
    ('model_type: OTHER model_platform: "x"', BOTH),
    ('model_type: TENSORFLOW model_platform: "tensorflow"', BOTH),
    ("", NEITHER),
    ("model_type: MODEL_TYPE_UNSPECIFIED", NEITHER),
]


@pytest.mark.parametrize(("text", "message"), PLATFORMS)
def test_platform_that_cannot_be_served_is_refused_in_words_of_its_own(text, message):
    bad = config(f'name: "m" base_path: "/m" {text}')
    for configs in ([bad], [config(GOOD.replace('"m"', '"b"')), bad]):
        error = refused_config(check_platforms, configs)
        assert (error.code, error.message) == (Code.INVALID_ARGUMENT, message)


@pytest.mark.parametrize(("text", "message"), PLATFORMS)
def test_platform_of_a_model_that_is_there_may_not_change(text, message):
    after = config(f'name: "m" base_path: "/m" {text}')
    error = refused_config(check_changes, {"m": config()}, [after])
    wanted = message.removeprefix("Model m requests unsupported platform ")
    if wanted != message:
        message = (
            "Illegal to change a model's platform. For model m platform was tensorflow and new "
            f"platform requested is {wanted}"
        )
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, message)
    check_changes({}, [after])  # a model that is new is none of its business


def test_deprecated_type_is_the_same_platform():
    check_changes({"m": config()}, [config('name: "m" model_type: TENSORFLOW')])
    assert platform_of(config("model_type: TENSORFLOW")) == platform_of(config()) == "tensorflow"


def test_logging_is_refused_whatever_it_says():
    check_logging([config()])
    error = refused_config(check_logging, [config(), config(GOOD + " logging_config {}")])
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message == "No request-logger-creator provided."
