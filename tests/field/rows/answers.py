"""What comes out of picture models: probabilities, logits, classes, names, boxes, masks."""

from dataclasses import replace

from tests.field.expected import Answer, Class, ErrorRate, Objects, Refusal, Row

IMAGE = {"image": "float [?, 8, 8, 3]"}
COLOURS = ErrorRate("colours")
MASK = Refusal(2, "one value per pixel", "tfkit request")
OBJECTS = Refusal(2, "answers with objects", "choose an output with classes")
RANKED = {"meaning": "scores of the best classes"}
TWO = Refusal(2, "2 outputs that may be class scores: bright float [?, 2], colour float [?, 3]",
              "choose one: --output bright or --output colour", file="red.png")  # fmt: skip
CONSTANT = Refusal(2, "output 'scores' is float [2]: its first axis is fixed, so it has no row "
                   "for each picture", "`tfkit request PICTURE`")  # fmt: skip
AGE = Refusal(2, "output 'age' is one number for each picture", "--softmax", file="mid.png")

ROWS = (
    Row("sigmoid", "one column of a sigmoid", IMAGE, {"output_0": "float [?, 1]"},
        (Class("red.png", 1, 1.0, meaning="one probability",
               told={"output": "'output_0', the probability of class 1 (graph)"}),
         Class("blue.png", 0, 1.0, meaning="one probability")),
        ErrorRate("redness")),
    Row("logits", "logits", IMAGE, {"logits": "float [?, 3]"},
        (Class("red.png", 2, 9.0196, meaning="logits or other scores"),
         Class("red.png", 2, 0.9995, options=("--softmax",))),
        COLOURS),
    Row("multi_label", "a sigmoid for each class", IMAGE, {"labels_there": "float [?, 3]"},
        (Class("red.png", 2, 0.9997),
         Class("mid.png", 0, 0.5098, meaning="a probability for each class")), COLOURS),
    Row("two_heads", "two outputs with scores", IMAGE,
        {"bright": "float [?, 2]", "colour": "float [?, 3]"},
        (TWO, Class("red.png", 2, 0.9995, options=("--output", "colour"))),
        ErrorRate("colours", options=("--output", "colour"))),
    Row("class_beside_scores", "the class beside its scores", IMAGE,
        {"classes": "int64 [?]", "probabilities": "float [?, 3]"},
        (Class("red.png", 2, 0.9995,
               told={"output": "'probabilities', class scores (signature)"}),),
        COLOURS),
    Row("class_alone", "the class alone", IMAGE, {"classes": "int64 [?]"},
        (Class("red.png", 2, None, meaning="classes"),), COLOURS),
    Row("class_name_alone", "the name of the class alone", IMAGE, {"label": "string [?]"},
        (Class("green.png", None, None, "green", meaning="classes"),), COLOURS),
    Row("class_names", "names in the order of the scores", IMAGE,
        {"labels": "string [?, 3]", "scores": "float [?, 3]"},
        (Class("red.png", None, 0.9995, "red", **RANKED),
         Class("green.png", None, 0.9995, "green", **RANKED)), COLOURS),
    Row("class_numbers", "numbers in the order of the scores", IMAGE,
        {"indices": "int32 [?, 2]", "scores": "float [?, 2]"},
        (Class("red.png", 2, 0.9995, **RANKED), Class("green.png", 1, 0.9995, **RANKED),
         Class("red.png", 2, 0.9995, "c", options=("--labels", "abc.txt"), **RANKED)), COLOURS),
    Row("best_scores_alone", "sorted scores of classes that nothing names", IMAGE,
        {"scores": "float [?, 2]"},
        (Refusal(2, "holds the best scores of each picture, sorted", "export the model again"),),
        Refusal(2, "holds the best scores of each picture, sorted", "export the model again")),
    Row("embedding", "192 numbers that are no scores", IMAGE, {"embedding": "float [?, 192]"},
        (Class("blue.png", 2, 0.0699, meaning="logits or other scores",
               told={"output": "'embedding', class scores (assumed)"}),),
        Refusal(2, "the set has 3 classes (blue, green, red), the model 192", "give --labels")),
    Row("age", "one number that is not a probability", IMAGE, {"age": "float [?, 1]"},
        (AGE, Answer("rows.npy", {"age": [[0.0], [100.0]]})),
        Refusal(2, "the set has 3 classes (blue, green, red), the model 2", "the extra class")),
    Row("constant_answer", "the same numbers whatever comes", IMAGE, {"scores": "float [2]"},
        (replace(CONSTANT, file="red.png"), Answer("rows.npy", {"scores": [0.25, 0.75]})),
        CONSTANT, batches=False),
    Row("nan_scores", "NaN where the class is sure", IMAGE, {"scores": "float [?, 3]"},
        (Class("red.png", 0, 0.0003, meaning="logits or other scores"),),
        Refusal(6, "the model's scores are NaN or infinite", "--range")),
    Row("segmenter", "a value for each pixel", IMAGE, {"mask": "float [?, 8, 8, 3]"},
        (MASK,), MASK),
    Row("detector", "names of the Object Detection API", {"input_tensor": "uint8 [1, ?, ?, 3]"},
        {"detection_boxes": "float [1, 2, 4]", "detection_classes": "float [1, 2]",
         "detection_scores": "float [1, 2]", "num_detections": "float [1]"},
        (Objects("red.png", ((3, 0.9), (17, 0.2)), ("--size", "8x8")),
         Objects("blue.png", ((1, 0.9), (17, 0.2)), ("--size", "8x8"))),
        replace(OBJECTS, options=("--size", "8x8")), batches=False),
    Row("detector_of_other_names", "boxes, scores and classes", {"image": "uint8 [?, 8, 8, 3]"},
        {"boxes": "float [?, 2, 4]", "classes": "int64 [?, 2]", "scores": "float [?, 2]"},
        (Objects("red.png", ((3, 0.9), (17, 0.2))), Objects("green.png", ((1, 0.9), (17, 0.2)))),
        OBJECTS),
)  # fmt: skip
