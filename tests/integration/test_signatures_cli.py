"""Commands on signatures as they are: parameters, no inputs, values without a notation in JSON."""

import numpy as np
import pytest


@pytest.fixture
def ask(tfkit, embedded_server):
    """Run a command against a server, by one protocol or the other."""

    def run(command, model, *arguments, protocol="grpc"):
        url = getattr(embedded_server.endpoints, protocol)
        return tfkit(command, *arguments, "--url", url, "--model", model)

    return run


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
@pytest.mark.parametrize(
    ("signature", "note"),
    [("scalar", "the same value in every request: 'sc' = 1.0"), ("sum", "")],
)
def test_perf_measures_signatures_of_any_kind(ask, protocol, signature, note):
    done = ask("perf", "scalars", "--signature", signature, "--requests", 20, "--json",
               protocol=protocol)  # fmt: skip
    assert done.code == 0, done.err
    assert (done.data["requests"], done.data["errors"]) == (20, {})
    assert note in done.err


@pytest.mark.parametrize("signature", ["scalar", "no_input"])
def test_perf_refuses_rows_where_there_are_none(ask, signature):
    done = ask("perf", "scalars", "--signature", signature, "--batch", 2, "--requests", 2)
    assert done.code == 2
    assert "no input with a batch axis, so 2 rows cannot be sent at once" in done.err


def test_signature_without_inputs_takes_no_file(ask):
    done = ask("request", "scalars", "--signature", "no_input", "--json")
    assert done.code == 0, done.err
    assert list(done.data["outputs"]) == ["out"]
    assert ask("perf", "scalars", "--signature", "no_input", "--requests", 9).code == 0
    refused = ask("request", "scalars", "--signature", "scalar")
    assert refused.code == 2 and "signature 'scalar' needs sc" in refused.err


@pytest.mark.parametrize("command", [("request",), ("perf", "--requests", 2)])
def test_signature_without_inputs_needs_grpc(ask, command):
    name, *options = command
    done = ask(name, "scalars", "--signature", "no_input", *options, protocol="rest")
    assert done.code == 6
    assert "without inputs over REST" in done.err and "--protocol grpc" in done.err


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_answers_are_json_to_every_parser(ask, protocol, tmp_path):
    np.save(tmp_path / "x.npy", np.float32([np.nan, np.inf, -np.inf, 0.2]))
    done = ask("request", "half_plus_two", "x.npy", "--json", protocol=protocol)
    assert done.code == 0, done.err
    assert done.data["outputs"] == {"y": ["NaN", "Infinity", "-Infinity", 3.1]}
    assert "3.1" in ask("request", "half_plus_two", "x.npy", protocol=protocol).out
