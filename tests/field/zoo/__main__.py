"""Builds all models into a folder: `python -m tests.field.zoo FOLDER [NAME ...]`."""

import json
import os
import sys
from importlib import import_module
from pathlib import Path

FAMILIES = ("keras3", "pictures", "answers", "encoded", "tabular", "numbers", "signatures", "older")


def main(folder, *names):
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    for family in FAMILIES:
        import_module(f"tests.field.zoo.{family}")
    from tests.field.zoo.registry import BUILDERS

    told = {}
    for name in names or BUILDERS:
        said = BUILDERS[name](Path(folder) / name)
        if said is not None:
            told[name] = {
                side: {alias: array.tolist() for alias, array in arrays.items()}
                for side, arrays in said.items()
            }
    (Path(folder) / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
