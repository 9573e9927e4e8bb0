"""Configuration files in text format, and lists of models that are refused."""

import logging

import pytest

from tfserve_kit import protos
from tfserve_kit.embedded.model_config import check_models, platform, read_models, read_text_proto
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
    ],
)
def test_good_model_is_accepted(text):
    check_models([config(text)])
    check_models([config(text), config(GOOD.replace('"m"', '"b"'))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name: "m" base_path: "m" model_platform: "tensorflow"',
         "Expected model m to have an absolute path or URI; got base_path()=m"),
        ('name: "m" model_platform: "tensorflow"',
         "Expected model m to have an absolute path or URI; got base_path()="),
        (GOOD + " logging_config {}", "No request-logger-creator provided."),
        (GOOD + " model_type: TENSORFLOW",
         "Illegal setting both ModelServerConfig::model_type (deprecated) and "
         "ModelServerConfig::model_platform, model name is m"),
        ('name: "m" base_path: "/m" model_type: OTHER',
         "ModelServerConfig::model_type choice 2 not supported."),
        ('name: "m" base_path: "/m"',
         "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
         "ModelServerConfig::model_platform, model name is m"),
    ],
)  # fmt: skip
def test_bad_model_is_refused_wherever_it_stands(text, message):
    fine = config(GOOD.replace('"m"', '"b"'))
    for configs in ([config(text)], [fine, config(text)]):
        error = refusal(check_models, configs)
        assert (error.code, error.message) == (Code.INVALID_ARGUMENT, message)


def test_name_may_be_listed_once():
    error = refusal(check_models, [config(), config(GOOD.replace("/m", "/other"))])
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message == "Illegal to list model m multiple times in config list"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, "tensorflow"),
        ('model_platform: "other"', "other"),
        ("model_type: TENSORFLOW", "tensorflow"),
        ("", ""),
    ],
)
def test_platform_is_known_also_by_the_deprecated_type(text, expected):
    assert platform(config(text)) == expected
