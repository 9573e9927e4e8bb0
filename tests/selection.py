"""Which tests `make test` runs, and which are left to `make test-slow`.

`make test` is for whoever changes something: it needs no Docker, takes minutes and covers every
room. Tests that serve for long, build images, run whole pages and examples, or look for rare faults
in tens of thousands of cases are marked `slow`, here and nowhere else.
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
    "unit/repository/test_hostile_files.py",
    "unit/repository/test_sources.py::TestKerasExport",
    "unit/savedmodel/test_scan.py::test_what_tensorflow_exports",
)
# Tests that use these, or have a parameter of this name, run containers or the official binary.
ELSEWHERE = frozenset({"docker", "docker_image", "native", "native_binary", "container_deployment"})


def is_slow(test: str, uses: set[str]) -> bool:
    """Say whether a test is left to `make test-slow`.

    Args:
        test: its node id, below tests/.
        uses: names of its fixtures, and texts among its parameters.
    """
    if uses & ELSEWHERE:
        return True
    fitting = [each for each in QUICK + SLOW if re.match(rf"{re.escape(each)}($|/|::|\[)", test)]
    return max(fitting, key=len, default="") not in QUICK


def holds_quick_tests(place: str) -> bool:
    """Say whether a file or folder below tests/ has tests for `make test`."""
    return not is_slow(place, set()) or any(f"{each}/".startswith(f"{place}/") for each in QUICK)
