"""Pictures go in as the bytes of a file, or as text that stands for them."""

from tests.field.expected import Class, ErrorRate, Row

SCORES = {"scores": "float [?, 3]"}
RAW = {"encoding": "the file's bytes (assumed)"}


def brightness(name, what, takes, *, told=RAW, alias="image_bytes", gives=SCORES, **more):
    asks = (Class("bright.png", 0, 1.0, told=told), Class("mid.png", 2, 0.9999, told=told))
    return Row(name, what, {alias: takes}, gives, asks, ErrorRate("brightness"),
               input="mid.png", **more)  # fmt: skip


ROWS = (
    brightness("bytes_of_a_row", "one file for each row", "string [?]"),
    brightness("bytes_in_a_column", "files in a column", "string [?, 1]"),
    brightness("bytes_of_unknown_rank", "files of unknown rank", "string [...]"),
    brightness("bytes_alone", "one file, no axis for more", "string []",
               told={"encoding": "the file's bytes (graph)"},
               gives={"scores": "float [1, 3]"}, batches=False),
    brightness("bytes_as_websafe_base64", "web-safe base64, told by the graph", "string [?]",
               alias="image_b64", told={"encoding": "web-safe base64 (graph)"}),
    Row("bytes_and_key", "a key beside the file, names beside the scores",
        {"image_bytes": "string [?]", "key": "string [?]"},
        {"key": "string [?]", "labels": "string [?, 3]", "scores": "float [?, 3]"},
        (Class("red.png", 2, 0.9995, "red", told={"input 'key'": "the picture's name (assumed)"}),
         Class("blue.png", 0, 0.9995, "blue", options=("--set", "key={index}"))),
        ErrorRate("colours"), input="red.png"),
    Row("bytes_preprocessed", "cropped and whitened inside", {"image_bytes": "string [?]"}, SCORES,
        (Class("red.png", 2, 1.0, told=RAW), Class("green.png", 1, 1.0, told=RAW)),
        ErrorRate("colours"), input="red.png"),
)  # fmt: skip
