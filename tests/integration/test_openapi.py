"""`tfkit metadata --openapi` against the embedded server: schemathesis asks what the document says.

Every request that it allows is answered as it says: by 200 with a body of the schema, or by an
error that says why. Some of them must be answered, since an error is always allowed.
"""

import json
import re

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tfserve_kit.deployment import build
from tfserve_kit.engines import process
from tfserve_kit.serving import launch

pytestmark = pytest.mark.tensorflow

OF_ANY_BODY = [not_a_server_error, content_type_conformance, status_code_conformance]
CHECKS = [*OF_ANY_BODY, response_schema_conformance]
MODELS = ("half_plus_two", "legacy", "mlp", "multi_io", "scalars", "strings")
EXAMPLES = 12


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    """An embedded server with all the models."""
    folder = tmp_path_factory.mktemp("openapi")
    deployment = build(
        {
            "models": {name: {"base_path": str(models / name)} for name in MODELS},
            "server": {"name": "openapi", "grpc_port": 0, "rest_port": 0},
        },
        source="tests",
        folder=folder,
    )
    handle = launch.up(deployment, process.embedded(folder))
    yield handle
    handle.stop(grace_s=5)


@pytest.fixture
def document(tfkit, server):
    def described(model, *arguments):
        url = server.endpoints.rest
        done = tfkit("metadata", "--url", url, "--model", model, "--openapi", *arguments)
        assert done.code == 0, done.err
        return json.loads(done.out)

    return described


def answers(operation, url):
    """Return how many of the requests that an operation allows were answered, and all of them."""
    statuses = []

    @hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(case=operation.as_strategy())
    def ask(case):
        response = case.call(base_url=url, timeout=60)
        # What is not JSON, as the document says of numbers, no schema can be held to.
        is_json = not re.search(rb"NaN|Infinity", response.content)
        case.validate_response(response, checks=CHECKS if is_json else OF_ANY_BODY)
        statuses.append(response.status_code)

    ask()
    return statuses.count(200), len(statuses)


@pytest.mark.parametrize("model", MODELS)
def test_every_request_of_the_document_is_answered_as_it_says(document, server, model):
    described = document(model)
    assert described["openapi"] == "3.1.0"
    assert described["servers"] == [{"url": server.endpoints.rest}]
    schema = schemathesis.openapi.from_dict(described)
    for path, operations in described["paths"].items():
        for method in operations:
            right, asked = answers(schema[path][method.upper()], server.endpoints.rest)
            assert asked > 0
            # Which features an example has stands in the graph alone.
            likely = not path.endswith((":classify", ":regress"))
            assert right > 0 or not likely, (
                f"{method} {path}: none of {asked} requests was answered"
            )


def test_paths_name_the_version_that_is_asked_for(document):
    version = document("mlp")["info"]["version"]
    paths = document("mlp", "--version", version)["paths"]
    assert f"/v1/models/mlp/versions/{version}:predict" in paths


def test_only_signatures_of_the_kind_can_be_classified(document):
    assert {path.rpartition(":")[2] for path in document("legacy")["paths"] if ":" in path} == {
        "predict", "classify", "regress",
    }  # fmt: skip
    assert not [path for path in document("mlp")["paths"] if path.endswith(":classify")]
