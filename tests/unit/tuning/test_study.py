"""What is tried: the space, and how values become a deployment."""

import pytest

from tests.unit.tuning.simulated import deployment
from tfserve_kit.deployment import flags
from tfserve_kit.deployment.spec import Batching
from tfserve_kit.tuning import Candidate, Space

SPACE = Space(cpus=4, rows=1, protocol="grpc", patience_s=0.01)


def params(**chosen):
    return SPACE.first()[0] | chosen


def test_first_comes_the_server_s_default_batching_and_then_none():
    default, without, *_ = map(SPACE.candidate, SPACE.first())
    assert default == Candidate(Batching(), {})
    assert without == Candidate(None, {})


def test_values_of_the_first_candidates_are_among_the_choices():
    axes = SPACE.axes()
    for first in SPACE.first():
        assert all(value in axes[name] for name, value in first.items())


def test_models_that_cannot_be_batched_are_tried_without():
    space = Space(cpus=4, rows=1, protocol="grpc", patience_s=0.01, batches=False)
    assert space.candidate(space.first()[0]) == Candidate(None, {})
    assert space.axes()["batching"] == (False,)
    for first in space.first():
        assert all(value in space.axes()[name] for name, value in first.items())
        assert space.candidate(first).batching is None


def test_what_the_server_does_by_itself_is_left_out():
    made = SPACE.candidate(params(max_batch_size=8, num_batch_threads=4))
    assert made.batching_set() == {"max_batch_size": 8}


@pytest.mark.parametrize(
    ("which", "sizes"), [("any", ()), ("largest", (12,)), ("doubling", (3, 6, 12))]
)
def test_sizes_begin_at_a_request_and_end_at_the_largest_batch(which, sizes):
    space = Space(cpus=4, rows=3, protocol="grpc", patience_s=1)
    made = space.candidate(params(max_batch_size=12, sizes=which))
    assert made.batching.allowed_batch_sizes == sizes


def test_no_batch_is_smaller_than_a_request():
    assert min(Space(cpus=4, rows=5, protocol="rest", patience_s=1).axes()["max_batch_size"]) == 5


def test_no_batch_waits_for_longer_than_half_the_limit():
    assert max(SPACE.axes()["batch_timeout_micros"]) == 5000


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
@pytest.mark.parametrize("cpus", [1, 2, 64])
def test_every_choice_makes_a_deployment_that_is_valid(protocol, cpus, tmp_path):
    space = Space(cpus=cpus, rows=1, protocol=protocol, patience_s=0.1)
    for name, choices in space.axes().items():
        for value in choices:
            made = space.candidate(space.first()[0] | {name: value})
            applied = made.applied(deployment(tmp_path))
            assert flags.problems(applied.server.flags) == []
            assert (applied.batching is None) == (value is False)


def test_flags_of_the_deployment_stay_unless_they_are_varied(tmp_path):
    spec = deployment(tmp_path)
    flags = {"grpc_max_threads": 7, "num_load_threads": 2}
    spec = spec.model_copy(update={"server": spec.server.model_copy(update={"flags": flags})})
    made = Candidate(None, {"grpc_max_threads": 64}).applied(spec)
    assert made.server.flags == {"grpc_max_threads": 64, "num_load_threads": 2}


def test_text_names_what_is_set():
    assert str(Candidate()) == "batching by default"
    assert str(Candidate(None, {"grpc_max_threads": 64})) == "no batching, grpc_max_threads 64"
    made = Candidate(Batching(max_batch_size=2, allowed_batch_sizes=(1, 2)))
    assert str(made) == "max_batch_size 2, allowed_batch_sizes [1, 2]"
