"""Which tests `make test` runs, and which are left to `make test-slow`.

`make test` is for whoever changes something: it needs no Docker, takes minutes and covers every
room. Tests that serve for long, build images, run whole pages and examples, or look for rare faults
in tens of thousands of cases are marked `slow`, here and nowhere else.
"""

# Folders and files below tests/; the longest that fits decides.
QUICK = (
    "unit",
    "integration/test_cli.py",
    "integration/test_evaluate_cli.py",
    "integration/test_inspect_cli.py",
    "integration/test_lint_cli.py",
    "integration/test_predict_cli.py",
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
)
# Tests that use these, or have a parameter of this name, run containers or the official binary.
ELSEWHERE = frozenset({"docker", "docker_image", "native", "native_binary", "container_deployment"})


def is_slow(file: str, uses: set[str]) -> bool:
    """Say whether a test is left to `make test-slow`.

    Args:
        file: the test's file, below tests/.
        uses: names of its fixtures, and texts among its parameters.
    """
    if uses & ELSEWHERE:
        return True
    fitting = [each for each in QUICK + SLOW if file == each or file.startswith(f"{each}/")]
    return max(fitting, key=len, default="") not in QUICK
