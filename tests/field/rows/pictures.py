"""Pictures go in as numbers, in all the shapes there are."""

from tests.field.expected import Class, ErrorRate, Refusal, Row

SCORES = {"scores": "float [?, 3]"}
UNIT = {"range": "0 to 1 (assumed)"}
WHOLE = {"range": "0 to 255 (signature)"}


def colours(name, what, shape, *, told=UNIT, options=(), gives=SCORES, score=0.9995, **more):
    """Return the row of a model of three colours, whose one input is `image`."""
    asks = tuple(
        Class(f"{colour}.png", index, score, told=told, options=options)
        for index, colour in enumerate(("blue", "green", "red"))
    )
    takes = {"image": shape} if isinstance(shape, str) else shape
    evaluated = ErrorRate("colours", options=options)
    return Row(name, what, takes, gives, asks, evaluated, **more)


SIZE_REMEDY = "give --size HEIGHTxWIDTH"
FOUR = Refusal(
    2, "takes 4 channels, but a picture has 1 (grey) or 3 (colour)", "`tfkit request FILE.npy`"
)

ROWS = (
    Row("picture_unit", "nothing tells the range", {"image": "float [?, 8, 8, 3]"}, SCORES,
        (Class("bright.png", 0, 1.0, told=UNIT), Class("mid.png", 2, 0.9999, told=UNIT),
         Class("mid.png", 0, 1.0, told={"range": "0 to 255 (option)"},
               options=("--range", "0,255"))),
        ErrorRate("brightness")),
    colours("picture_uint8", "uint8", "uint8 [?, 8, 8, 3]", told=WHOLE),
    Row("picture_half", "float16", {"image": "half [?, 8, 8, 3]"}, SCORES,
        (Class("red.png", 2, 0.9995, told=UNIT, protocols=("grpc",)),
         Class("blue.png", 0, 0.9995, told=UNIT, protocols=("grpc",)),
         Refusal(6, "to type: half", "--protocol grpc", protocol="rest")),
        ErrorRate("colours")),
    colours("picture_channels_first", "channels first", "float [?, 3, 8, 8]",
            told=UNIT | {"layout": "channels first (signature)"}),
    colours("picture_any_size", "any size", "float [?, ?, ?, 3]", options=("--size", "8x8")),
    colours("picture_flat", "a row of 192 values", "float [?, 192]"),
    colours("picture_batch_of_4", "four in each request", "float [4, 8, 8, 3]", batches=False,
            gives={"scores": "float [4, 3]"}),
    colours("picture_without_batch", "one, without an axis for more", "float [8, 8, 3]",
            gives={"scores": "float [3]"}, batches=False),
    colours("picture_unknown_rank", "of unknown rank", "float [...]",
            options=("--size", "8x8", "--channels", "3"), input="rows.npy",
            drawn=Refusal(6, "is not compatible with expected shape", "tfkit metadata")),
    colours("picture_of_fixed_weights", "five megabytes in the graph itself",
            "float [?, 8, 8, 3]"),
    Row("picture_grey", "28x28, no axis for channels", {"image": "float [?, 28, 28]"},
        {"scores": "float [?, 2]"},
        (Class("left.png", 0, 1.0, told={"channels": "grey (signature)"}),
         Class("right.png", 1, 1.0)),
        ErrorRate("halves")),
    Row("picture_four_channels", "four channels", {"image": "float [?, 8, 8, 4]"}, SCORES,
        (FOUR,), FOUR),
    Row("video", "four pictures in a row", {"image": "float [?, 4, 8, 8, 3]"}, SCORES,
        (Refusal(2, ", not a picture", "tfkit request FILE.npy"),),
        Refusal(2, ", not a picture")),
    colours("picture_and_keep_prob", "and a number for all rows",
            {"image": "float [?, 8, 8, 3]", "keep_prob": "float []"},
            options=("--set", "keep_prob=1"), batches=False),
    colours("picture_and_training", "and a flag for all rows",
            {"image": "float [?, 8, 8, 3]", "is_training": "bool []"},
            options=("--set", "is_training=false"), batches=False),
)  # fmt: skip
