"""Rows of tables, texts, ids and tf.Examples."""

import numpy as np

from tests.field.expected import Answer, Refusal, Row

WORD, ID = {"word": "string [?]"}, {"id": "int64 [?]"}
NOT_CLEAR = Refusal(2, "it is not clear which takes the picture", "give --picture-input NAME")
NO_DECODER = Refusal(2, "nothing in the model decodes a picture", "`tfkit request FILE.json`")
RAGGED = Refusal(8, "output 'counted' is a composite tensor (such as a RaggedTensor)",
                 "r.row_splits")  # fmt: skip
RAGGED_LINTED = Refusal(3, "output 'counted' is a composite tensor", "r.row_splits")
UNFILLED = Refusal(8, "can never answer: it reads table", "attribute of self")
UNFILLED_LINTED = Refusal(3, "can never answer: it reads table", "attribute of self")

ROWS = (
    Row("columns", "named columns of three types",
        {"age": "float [?]", "income": "int64 [?]", "city": "string [?]"}, {"score": "float [?]"},
        (Answer({"age": [50.0, 20.0], "income": [100, 200], "city": ["Graz", "Wien"]},
                {"score": [1.6, 0.4]}),),
        NO_DECODER,
        input="columns.json"),
    Row("examples", "serialized tf.Examples, to classify and to regress",
        {"inputs": "string [?]"}, {"score": "float [?]"},
        (Answer("examples.json", {"classes": [["no", "yes"]], "scores": [[0.6, 0.4]]},
                ("--signature", "classify")),
         Answer("examples.json", {"outputs": [0.4]}, ("--signature", "regress"))),
        NO_DECODER, input="serialized.json"),
    Row("ragged_in", "a ragged tensor, as values and row splits",
        {"rows": "float [?]", "rows_1": "int64 [?]"}, {"total": "float [?]"},
        (Answer({"rows": np.float32([1, 2, 3]), "rows_1": np.int64([0, 2, 3])},
                {"total": [3.0, 3.0]}),),
        NOT_CLEAR, batches=False),
    Row("ragged_out", "a ragged tensor comes out", {"n": "int32 [?]"}, {},
        inspected=RAGGED, pushed=RAGGED, linted=RAGGED_LINTED, served=RAGGED_LINTED),
    Row("sparse_in", "a sparse tensor, as its three parts",
        {"rows": "int64 [?, 2]", "rows_1": "float [?]", "rows_2": "int64 [2]"},
        {"total": "float [...]"},
        (Answer({"rows": np.int64([[0, 1], [0, 4], [1, 0]]), "rows_1": np.float32([1, 2, 5]),
                 "rows_2": np.int64([2, 5])}, {"total": [3.0, 5.0]}),),
        NOT_CLEAR, input="sparse.npz", batches=False),
    Row("table", "a table that the load fills", WORD, ID,
        (Answer({"word": ["b", "a", "z"]}, {"id": [2, 1, -1]}),), NO_DECODER, input="word.json"),
    Row("vocabulary", "words from an asset", WORD, ID,
        (Answer({"word": ["c", "a", "z"]}, {"id": [2, 0, -1]}),), NO_DECODER, input="word.json"),
    Row("table_never_filled", "a table that nothing fills", WORD, ID,
        inspected=UNFILLED, pushed=UNFILLED, linted=UNFILLED_LINTED, served=UNFILLED_LINTED),
    Row("token_ids", "sequences with their mask",
        {"input_ids": "int32 [?, ?]", "attention_mask": "int32 [?, ?]"}, {"logits": "float [?, 2]"},
        (Answer({"input_ids": [[5, 7, 0], [1, 2, 3]], "attention_mask": [[1, 1, 0], [1, 1, 1]]},
                {"logits": [[-6.0, 6.0], [-2.0, 2.0]]}),),
        NOT_CLEAR),
    Row("words", "texts come back, in one output as base64", {"text": "string [?]"},
        {"copy_bytes": "string [?]", "echo": "string [?]", "length": "int32 [?]"},
        (Answer({"text": ["süß", ""]},
                {"copy_bytes": ["süß", ""], "echo": ["süß", ""], "length": [3, 0]}),),
        NO_DECODER,
        input="words.json"),
)  # fmt: skip
