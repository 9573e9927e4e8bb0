"""Numbers of all kinds, and answers whose rows are not those of the request."""

from dataclasses import replace

import numpy as np

from tests.field.expected import Answer, Refusal, Row

X, Y = {"x": "float [?]"}, {"y": "float [?]"}
NO_PICTURE = Refusal(2, ", not a picture", "tfkit request FILE.npy")
NOT_CLEAR = Refusal(2, "it is not clear which takes the picture", "give --picture-input NAME")
HALF = Refusal(6, "to type: ", "--protocol grpc", file="halves.json", protocol="rest")
BIG = 9_007_199_254_740_993  # the first whole number that a double does not hold

ROWS = (
    Row("half_plus_two", "two variables", X, Y, (Answer({"x": [1.0, 5.0]}, {"y": [2.5, 4.5]}),),
        NO_PICTURE),
    Row("float16", "float16", {"x": "half [?, 2]"}, {"y": "half [?, 2]"},
        (Answer({"x": np.float16([[0.1, 2]])}, {"y": [[0.2, 4.0]]}, protocols=("grpc",)),
         replace(HALF, words="to type: half")), Refusal(2, "input 'x'")),
    Row("bfloat16", "bfloat16", {"x": "bfloat16 [?, 2]"}, {"y": "bfloat16 [?, 2]"},
        (Answer({"x": [[0.5, 3.0]]}, {"y": [[1.0, 6.0]]}, protocols=("grpc",)),
         replace(HALF, words="to type: bfloat16")), Refusal(2, "input 'x'")),
    Row("complex64", "complex64", {"z": "complex64 [?]"}, {"conjugate": "complex64 [?]"},
        (Answer({"z": np.complex64([1 + 2j])}, {"conjugate": [{"real": 1.0, "imag": -2.0}]},
                protocols=("grpc",)),
         Refusal(6, "cannot send the input 'z': REST cannot carry complex64", "--protocol grpc",
                 file="complex.npz", protocol="rest")),
        NO_PICTURE),
    Row("int64_ids", "whole numbers beyond 2**53", {"id": "int64 [?]"},
        {"same": "int64 [?]", "unsigned": "uint64 [?]"},
        (Answer({"id": [BIG]}, {"same": [BIG], "unsigned": [BIG]}),), NO_PICTURE),
    Row("uint64_ids", "whole numbers beyond 2**63", {"id": "uint64 [?]"}, {"same": "uint64 [?]"},
        (Answer({"id": [2**64 - 1]}, {"same": [2**64 - 1]}),), NO_PICTURE),
    Row("quantised", "weights of int8 with a scale", {"x": "uint8 [?, 2]"}, {"y": "float [?, 2]"},
        (Answer({"x": [[1, 2], [255, 0]]}, {"y": [[2.0, 0.0], [510.0, -255.0]]}),),
        Refusal(2, "input 'x'")),
    Row("dequantised", "eight bits on the way", X, Y,
        (Answer({"x": [-3.0, 7.3, 999.0]}, {"y": [0.0, 7.0, 255.0]}),), NO_PICTURE),
    Row("fake_quantised", "trained for quantisation", X, Y,
        (Answer({"x": [-3.0, 0.52, 99.0]}, {"y": [0.0, 0.5, 25.5]}),), NO_PICTURE),
    Row("logarithm", "NaN and infinity are answers", X, Y,
        (Answer({"x": [1.0, 0.0, -1.0]}, {"y": [0.0, "-Infinity", "NaN"]}),), NO_PICTURE),
    Row("positive_only", "no row at all may come back", X,
        {"rows": "int64 [?]", "values": "float [?]"},
        (Answer({"x": [-1.0, 3.0]}, {"rows": [1], "values": [3.0]}),
         Answer({"x": [-1.0, -2.0]}, {"rows": [], "values": []})), NO_PICTURE),
    Row("sum_of_rows", "one row, whatever comes", X, {"total": "float [1]"},
        (Answer({"x": [1.0, 2.0, 4.0]}, {"total": [7.0]}),), NO_PICTURE, batches=False),
    Row("constant_beside_rows", "an output without rows", {"keys": "int32 [?, 1]"},
        {"keys_again": "int32 [?, 1]", "version": "float [2]"},
        (Answer({"keys": [[7], [8], [9]]},
                {"keys_again": [[7], [8], [9]], "version": [1.0, 2.0]}),),
        Refusal(2, "and the set has 3 classes: blue, green, red", "--labels"),
        batches=False),
    Row("squeezed", "one row gives a bare number", X, {"y": "float [...]"},
        (Answer({"x": [4.0]}, {"y": 8.0}), Answer({"x": [4.0, 5.0]}, {"y": [8.0, 10.0]})),
        NO_PICTURE),
    Row("scalar_factor", "a number for all rows", {"factor": "float []", "x": "float [?, 2]"},
        {"y": "float [?, 2]"},
        (Answer({"x": [[1.0, 2.0]], "factor": 3.0}, {"y": [[3.0, 6.0]]}),),
        NOT_CLEAR, batches=False),
    Row("scalars_only", "two bare numbers", {"a": "float []", "b": "float []"}, {"sum": "float []"},
        (Answer({"a": 1.5, "b": 2.0}, {"sum": 3.5}),), NOT_CLEAR, batches=False),
    Row("large_answer", "thousands of numbers, as many as asked for", {"n": "int32 []"},
        {"y": "float [?, 1000]"}, (Answer({"n": 1}, {"y": [[0.5] * 1000]}),),
        Refusal(2, "input 'n'"), batches=False),
    Row("matrix", "no axis is open", {"m": "float [2, 5]"},
        {"total": "float []", "transposed": "float [5, 2]"},
        (Answer({"m": np.arange(10, dtype=np.float32).reshape(2, 5)},
                {"total": 45.0,
                 "transposed": [[0.0, 5.0], [1.0, 6.0], [2.0, 7.0], [3.0, 8.0], [4.0, 9.0]]}),),
        Refusal(2, "input 'm'"), batches=False),
)  # fmt: skip
