"""Models that Keras 3 exports, and ones it was made to save in ways that do not work."""

from tests.field.expected import Answer, AsTold, Class, ErrorRate, Refusal, Row

PHOTO, SCORES = {"photo": "float [?, 8, 8, 3]"}, {"output_0": "float [?, 3]"}
WHOLE = {"range": "0 to 255 (graph)"}
BRIGHT = ErrorRate("brightness")


def brightness(name, what, takes=None, told=WHOLE, options=(), **more):
    """Return the row of a model of three brightnesses: each is found, and why is told."""
    found = (("bright.png", 0, 1.0), ("dark.png", 1, 1.0), ("mid.png", 2, 0.9999))
    told = told | {"output": "'output_0', class scores (graph)"}
    asks = tuple(Class(*each, told=told, options=options) for each in found)
    if not options:
        asks += (Answer("mid.png", {"output_0": [[0.00005, 0.00004, 0.99991]]}),)
    evaluated = ErrorRate("brightness", options=options)
    return Row(name, what, takes or PHOTO, SCORES, asks, evaluated, **more)


NEVER = Refusal(8, "serving_default: can never answer: it reads variable", "model.export(FOLDER)")
NEVER_LINTED = Refusal(3, "signature 'serving_default' can never answer: it reads variable",
                       "model.export(FOLDER)")  # fmt: skip
TEXT = Refusal(2, "nothing in the model decodes a picture", "`tfkit request FILE.json`")
TWO_INPUTS = Refusal(2, "it is not clear which takes the picture", "give --picture-input NAME")

ROWS = (
    brightness("keras_functional", "functional, Rescaling(1/255)"),
    brightness("keras_sequential", "sequential, Rescaling(1/127.5, offset=-1)"),
    brightness("keras_subclassed", "subclassed, Rescaling in call()",
               {"args_0": "float [?, 8, 8, 3]"}),
    brightness("keras_normalization_255", "Normalization adapted to 0-255"),
    brightness("keras_normalization_unit", "Normalization adapted to 0-1",
               told={"range": "0 to 1 (graph)"}),
    brightness("keras_caffe", "preprocess_input of caffe inside"),
    brightness("keras_torch", "preprocess_input of torch inside"),
    brightness("keras_uint8", "input of uint8", {"photo": "uint8 [?, 8, 8, 3]"},
               told={"range": "0 to 255 (signature)"}),
    brightness("keras_archive", "ExportArchive with two endpoints"),
    brightness("keras_resizing", "Resizing inside, any size goes in",
               {"photo": "float [?, ?, ?, 3]"}, options=("--size", "8x8")),
    Row("keras_efficientnet", "begins as EfficientNet does", {"photo": "float [?, 16, 16, 3]"},
        {"output_0": "float [?, 5]"},
        (AsTold(), Class("red.png", 3, 0.2089, told=WHOLE)),
        Refusal(2, "the set has 3 classes (blue, green, red), the model 5", "give --labels")),
    Row("keras_dicts", "dictionaries in and out",
        {"context": "float [?, 3]", "user_id": "float [?, 2]"},
        {"ctr": "float [?, 1]", "cvr": "float [?, 2]"},
        (Answer({"user_id": [[1.0, 2.0]], "context": [[3.0, 4.0, 5.0]]},
                {"ctr": [[15.0]], "cvr": [[1.5, 1.5]]}),),
        TWO_INPUTS),
    Row("keras_lists", "lists in and out", {"a": "float [?, 2]", "b": "float [?, 3]"},
        {"output_0": "float [?, 1]", "output_1": "float [?, 2]"},
        (Answer({"a": [[1.0, 2.0]], "b": [[1.0, 0.0, 0.5]]},
                {"output_0": [[3.0]], "output_1": [[3.0, 3.0]]}),),
        TWO_INPUTS),
    Row("keras_lstm", "LSTM, BatchNormalization, Dropout", {"steps": "float [?, 4, 3]"},
        {"output_0": "float [?, 1]"}, (AsTold(),),
        Refusal(2, "the picture size for input 'steps' (float [?, 4, 3]) is not known")),
    Row("keras_text", "TextVectorization: texts go in", {"sentence": "string [?, 1]"},
        {"output_0": "float [?, 1]"},
        (Answer({"sentence": [["good film"], ["bad"], ["bad good"]]},
                {"output_0": [[0.25], [-0.25], [0.0]]}),
         TEXT),
        TEXT,
        input="text.json"),
    Row("keras_saved_wrongly", "saved by tf.saved_model.save", PHOTO, SCORES,
        inspected=NEVER, pushed=NEVER, linted=NEVER_LINTED, served=NEVER_LINTED),
    Row("keras_in_module", "inside a tf.Module", PHOTO, {"scores": "float [?, 3]"},
        inspected=NEVER, pushed=NEVER, linted=NEVER_LINTED, served=NEVER_LINTED),
)  # fmt: skip
