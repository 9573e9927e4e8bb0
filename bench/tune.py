"""`tfkit tune` on two models, against the server's default batching: `python -m bench.tune [NAME]`.

The digits' softmax regression, where a request costs next to nothing, and keras' MobileNetV2 with
random weights and four pictures in each request, where it costs tens of milliseconds. Prints what
the command prints. It takes about twenty minutes on a machine that does nothing else; what else it
does shows in the result.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from tfserve_kit.perf import measuring

_ROOT = Path(__file__).resolve().parents[1]
_DIGITS = _ROOT / "examples" / "digits" / "train.py"
# By model: what makes it, before and after the folder, and what is asked of the search.
_MODELS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "digits": ([str(_DIGITS), "--out"], [], ["--slo", "p99=20ms", "--trials", "8"]),
    "mobilenet": (
        ["-m", "bench.savedmodel"],
        ["MobileNetV2"],
        ["--slo", "p90=1s", "--trials", "6", "--batch", "4"],
    ),
}


def main(names: list[str]) -> None:
    """Tune each model in a folder of its own."""
    for name, value in measuring.describe_environment().items():
        print(f"{name}: {value}")
    for name in names or _MODELS:
        with tempfile.TemporaryDirectory() as folder:
            _tune(name, Path(folder))


def _tune(name: str, folder: Path) -> None:
    before, after, asked = _MODELS[name]
    _run(*before, folder / "export", *after)
    _run("-m", "tfserve_kit", "push-model", folder / "export", "--to", folder / name)
    _run(
        "-m", "tfserve_kit", "tune", "--engine", "embedded", "--model", f"{name}={folder / name}",
        *asked, "--duration", 2, "--output", folder / "tuned",
    )  # fmt: skip


def _run(*arguments: object) -> None:
    print(f"\n$ python {' '.join(map(str, arguments))}", flush=True)
    subprocess.run([sys.executable, *map(str, arguments)], cwd=_ROOT, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
