"""Configuration files in text format, and lists of models that are refused."""

import logging

import pytest

from tfserve_kit import protos
from tfserve_kit.embedded.settings import (
    check_changes,
    check_logging,
    check_models,
    check_platforms,
    platform_of,
    read_models,
    read_text_proto,
)
from tfserve_kit.embedded.status import Code, ServingError

GOOD = 'name: "m" base_path: "/m" model_platform: "tensorflow"'


def config(text=GOOD):
    return protos.from_text("ModelConfig", text)


def refusal(call, *arguments):
    with pytest.raises(ServingError) as caught:
        call(*arguments)
    return caught.value


@pytest.fixture
def written(tmp_path):
    """Write a file and return its path as a string."""

    def write(content):
        file = tmp_path / "models.config"
        file.write_bytes(content.encode("utf-8", "surrogateescape"))
        return str(file)

    return write


# Files


def test_file_is_read_as_the_message_asked_for(written):
    found = read_text_proto("BatchingParameters", written("max_batch_size { value: 3 }"))
    assert found == protos.BatchingParameters(max_batch_size={"value": 3})


def test_file_that_is_not_there_is_not_found(tmp_path):
    file = str(tmp_path / "nope")
    error = refusal(read_text_proto, "BatchingParameters", file)
    assert error.code is Code.NOT_FOUND
    assert error.message == f"{file}; No such file or directory"


@pytest.mark.parametrize(
    ("content", "text"),
    [("", "{file}; Invalid argument"), ("nope: 1", "Invalid protobuf file: '{file}'")],
)
def test_file_that_cannot_be_used_is_refused(written, content, text):
    file = written(content)
    error = refusal(read_text_proto, "BatchingParameters", file)
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message == text.format(file=file)


def test_reason_of_the_parser_goes_to_the_log_with_the_line(written, caplog):
    with caplog.at_level(logging.ERROR):
        refusal(read_text_proto, "BatchingParameters", written("\nnope: 1"))
    assert "tensorflow.serving.BatchingParameters: 2:" in caplog.text


def test_models_of_a_file_come_in_order(written):
    other = GOOD.replace('"m"', '"a"')
    file = written(f"model_config_list {{ config {{ {GOOD} }} config {{ {other} }} }}")
    assert [each.name for each in read_models(file)] == ["m", "a"]


def test_file_without_models_is_an_empty_list(written):
    assert read_models(written("model_config_list {}")) == ()


def test_models_of_a_file_are_checked(written):
    file = written(f"model_config_list {{ config {{ {GOOD} }} config {{ {GOOD} }} }}")
    assert "multiple times" in refusal(read_models, file).message


def test_custom_configuration_is_refused(written):
    error = refusal(read_models, written("custom_model_config {}"))
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
        error = refusal(check_models, configs)
        assert error.code is Code.INVALID_ARGUMENT
        assert error.message == (
            f"Expected model m to have an absolute path or URI; got base_path()={path}"
        )


def test_name_may_be_listed_once_and_that_is_looked_at_before_any_path():
    error = refusal(check_models, [config(GOOD.replace("/m", "m")), config()])
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
        error = refusal(check_platforms, configs)
        assert (error.code, error.message) == (Code.INVALID_ARGUMENT, message)


@pytest.mark.parametrize(("text", "message"), PLATFORMS)
def test_platform_of_a_model_that_is_there_may_not_change(text, message):
    after = config(f'name: "m" base_path: "/m" {text}')
    error = refusal(check_changes, {"m": config()}, [after])
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
    error = refusal(check_logging, [config(), config(GOOD + " logging_config {}")])
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message == "No request-logger-creator provided."
