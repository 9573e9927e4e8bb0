"""Signatures: several, none, without inputs, with odd names, with defaults."""

from tests.field.expected import Answer, Refusal, Row

X, Y = {"x": "float [?]"}, {"y": "float [?]"}
NO_PICTURE = Refusal(2, ", not a picture", "tfkit request FILE.npy")
NO_DEFAULT = Refusal(2, "the model has no signature 'serving_default'", "choose one of: double")
NO_TAG = Refusal(8, "no graph is tagged 'serve'; it has train", "--tag train")
NO_TAG_LINTED = Refusal(3, "no graph is tagged 'serve'; it has train",
                        'saved_model_tags = "train"')  # fmt: skip
PYTHON = Refusal(8, "EagerPyFunc: calls Python code, which a server cannot execute",
                 "export the model without it")  # fmt: skip
READER = Refusal(8, "ReadFile: reads a file", "export the model without it")
NONE = Refusal(8, "the model has no signature", "export it with signatures=")
NONE_LINTED = Refusal(3, "has no signature, so no request can call it", "export it with")

ROWS = (
    Row("several_signatures", "three signatures", X, Y,
        (Answer({"x": [3.0]}, {"y": [6.0]}),
         Answer({"x": [3.0]}, {"half": [1.5]}, ("--signature", "halve")),
         Answer({"word": ["three"]}, {"n": [5]}, ("--signature", "lengths")),
         Refusal(2, "has no signature 'halves'", "halve", options=("--signature", "halves"),
                 file="x.json")),
        NO_PICTURE),
    Row("no_serving_default", "no serving_default", X, Y,
        (Answer({"x": [3.0]}, {"y": [6.0]}, ("--signature", "double")),
         Refusal(2, "the model has no signature 'serving_default'", "choose one of: double",
                 file="x.json")),
        NO_DEFAULT, linted="has no signature 'serving_default', only double", signature="double"),
    Row("signature_without_input", "a signature that takes nothing", X, Y,
        (Answer({}, {"names": ["a", "b"]}, ("--signature", "names"), protocols=("grpc",)),
         Refusal(6, "", options=("--signature", "names"), file="nothing.json", protocol="rest")),
        NO_PICTURE),
    Row("optional_input", "an input with a default", {"factor": "float [?]", "x": "float [?]"}, Y,
        (Answer({"x": [2.0, 4.0]}, {"y": [6.0, 12.0]}, protocols=("grpc",)),
         Refusal(6, "has defaults for the inputs factor, but not over REST", "or use gRPC",
                 file="x.json", protocol="rest"),
         Answer({"x": [2.0], "factor": [5.0]}, {"y": [10.0]})), NO_PICTURE),
    Row("odd_names", "names of any characters", X,
        {"instances": "float [?]", "weird name/é": "float [?]"},
        (Answer({"x": [1.0]}, {"instances": [1.0], "weird name/é": [2.0]}),), NO_PICTURE),
    Row("as_text", "saved_model.pbtxt", X, Y, (Answer({"x": [3.0]}, {"y": [6.0]}),), NO_PICTURE),
    Row("no_signature", "no signature at all", {}, {},
        inspected=NONE, pushed=NONE, linted=NONE_LINTED),
    Row("another_tag", "tagged train", X, Y,
        inspected=NO_TAG, pushed=NO_TAG, linted=NO_TAG_LINTED, served=NO_TAG_LINTED),
    Row("python_function", "a py_function inside", X, Y, inspected=PYTHON, pushed=PYTHON,
        linted="EagerPyFunc: calls Python code, which a server cannot execute"),
    Row("file_reader", "reads files that a request names", {"path": "string [?]"},
        {"data": "string [?]"}, inspected=READER, pushed=READER,
        linted="ReadFile: reads a file"),
)  # fmt: skip
