"""Which tests `make test` runs, which are left to `make test-slow`, and which share no machine.

`make test` is for whoever changes something: it needs no Docker, takes minutes and covers every
room. Tests that serve for long, build images, run whole pages and examples, or look for rare faults
in tens of thousands of cases are marked `slow`, here and nowhere else. So are those marked `alone`,
which measure time or fill the machine: `make check` runs nothing beside them. Those marked `swarm`
run one after the other beside the rest: they wait for machines, or for containers, more than they
compute.
"""

import re

# Folders, files, classes and tests, below tests/; the longest that fits decides.
QUICK = (
    "unit",
    "integration/test_cli.py",
    "integration/test_evaluate_cli.py",
    "integration/test_inspect_cli.py",
    "integration/test_lint_cli.py",
    "integration/test_predict_cli.py",
    "integration/test_push_cli.py",
    "integration/test_signatures_cli.py",
    "integration/test_warmup_cli.py",
)
SLOW = (
    "contract",
    "field",
    "integration",
    "system",
    "torture",
    "unit/embedded/test_fuzz_models.py",
    "unit/engines/test_draining.py",
    "unit/repository/test_hostile_files.py",
    "unit/repository/test_sources.py::TestKerasExport",
    "unit/savedmodel/test_scan.py::test_what_tensorflow_exports",
)
# Tests that use these, or have a parameter of this name, run containers or the official binary.
ELSEWHERE = frozenset(
    {
        "docker",
        "docker_image",
        "native",
        "native_binary",
        "container_deployment",
        "swarm",
        "cluster",
        "kubernetes",
    }
)

# These measure time, fill the machine, or lose what they look for where others have the processor.
ALONE = (
    "contract/test_batching_oracle.py",
    "integration/test_batching_threads.py",
    "integration/test_capacity.py",
    "integration/test_fleet.py",
    "integration/test_hostile_clients.py",
    "integration/test_kubernetes.py",
    "integration/test_long_life.py",
    "integration/test_nodes.py",
    "integration/test_perf_accounting.py",
    "integration/test_perf_beside_others.py",
    "integration/test_perf_drills.py",
    "integration/test_perf_honesty.py",
    "integration/test_perf_quantiles.py::test_of_a_hundred_real_runs_holds_the_true_quantile_in_nearly_all",
    "integration/test_perf_quantiles.py::test_of_a_real_run_holds_the_true_quantiles",
    "integration/test_perf_sending.py",
    "integration/test_swarm.py::TestUnderLoad",
    "integration/test_trial.py::TestRefused::test_answer_that_never_comes",
    "integration/test_tune_cli.py::test_candidates_are_served_measured_and_kept",
    "system/test_pages.py::test_commands_of_the_page_about_scaling_work",
    "torture/test_crowd.py",
    "torture/test_load_beside_attack.py",
    "torture/test_soak.py",
)

# These wait for containers as those of a swarm wait for machines.
WAITING = ("integration/test_docker_faults.py",)


def is_slow(test: str, uses: set[str]) -> bool:
    """Say whether a test is left to `make test-slow`.

    Args:
        test: its node id, below tests/.
        uses: names of its fixtures, and texts among its parameters.
    """
    if uses & ELSEWHERE:
        return True
    return max(_fitting(test, QUICK + SLOW), key=len, default="") not in QUICK


def holds_slow_tests(place: str, text: str) -> bool:
    """Say whether a file below tests/ may have others than those of `make test`, by what it says.

    In unit/ fixtures are named where they are used; elsewhere they may be behind others.
    """
    if not place.startswith("unit/") or is_slow(place, set()):
        return True
    named = re.search(rf"\b({'|'.join(ELSEWHERE)})\b", text)
    return bool(named) or any(each.startswith(f"{place}::") for each in SLOW)


def is_alone(test: str) -> bool:
    """Say whether a test, by its node id below tests/, wants the machine for itself."""
    return any(_fitting(test, ALONE))


def is_of_swarm(test: str, uses: set[str]) -> bool:
    """Say whether a test runs with those of a swarm of machines; arguments as of `is_slow`."""
    return ("swarm" in uses or any(_fitting(test, WAITING))) and not is_alone(test)


def _fitting(test: str, places: tuple[str, ...]) -> list[str]:
    return [each for each in places if re.match(rf"{re.escape(each)}($|/|::|\[)", test)]


def holds_quick_tests(place: str) -> bool:
    """Say whether a file or folder below tests/ has tests for `make test`."""
    return not is_slow(place, set()) or any(f"{each}/".startswith(f"{place}/") for each in QUICK)
