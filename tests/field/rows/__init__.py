"""What the commands say of each model of the zoo, family by family."""

from importlib import import_module

FAMILIES = {
    "keras3": "Keras 3",
    "pictures": "Pictures as numbers",
    "answers": "What picture models answer",
    "encoded": "Pictures as bytes",
    "tabular": "Tables, texts, ids",
    "numbers": "Numbers and rows",
    "signatures": "Signatures",
    "older": "As TensorFlow 1 wrote them",
}
ROWS = {family: import_module(f"tests.field.rows.{family}").ROWS for family in FAMILIES}
BY_NAME = {row.name: row for rows in ROWS.values() for row in rows}
