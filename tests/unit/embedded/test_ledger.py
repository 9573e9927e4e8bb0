"""The ledger of bytes: nothing is ever lost or made up, and nobody takes everything."""

import contextlib
import json
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfserve_kit import protos
from tfserve_kit.embedded import json_reader, json_writer, signatures
from tfserve_kit.embedded.grpc_surface import GrpcSurface, PredictInputs
from tfserve_kit.embedded.handlers import Predicted
from tfserve_kit.embedded.ledger import (
    BudgetExceeded,
    Call,
    Ledger,
    cost_of_answer,
    cost_of_arrays,
    cost_of_json,
    cost_of_message,
    cost_of_results,
)
from tfserve_kit.embedded.metrics import Metrics
from tfserve_kit.embedded.rest_surface import RestSurface
from tfserve_kit.embedded.status import Code, ServingError
from tfserve_kit.tensors import to_proto
from tfserve_kit.tensors.proto import encode_varint

TOTAL = 1600
A_LONE_CLIENTS = 1200  # four times what is then free, of fifteen sixteenths


def holding(ledger, client, size_bytes):
    account = ledger.account(client)
    account.take(size_bytes, "a test")
    return account


def most(ledger, client):
    """Take until no more is given; return the account."""
    account = ledger.account(client)
    for step in (1 << bits for bits in range(40, -1, -1)):
        with contextlib.suppress(BudgetExceeded):
            while True:
                account.take(step, "more")
    return account


def test_client_alone_gets_three_quarters():
    ledger = Ledger(TOTAL)
    holding(ledger, "gateway", A_LONE_CLIENTS)
    with pytest.raises(BudgetExceeded) as caught:
        holding(ledger, "gateway", 1)
    assert (caught.value.code, caught.value.is_passing) == (Code.RESOURCE_EXHAUSTED, True)
    assert ledger.held_bytes == A_LONE_CLIENTS


@pytest.mark.parametrize("hogs", [1, 2, 5, 20])
def test_newcomer_is_served_while_hogs_hold_all_they_may(hogs):
    ledger = Ledger(1 << 30)
    for number in range(hogs):
        most(ledger, f"hog {number}")
    holding(ledger, "newcomer", 1 << 20)
    with pytest.raises(BudgetExceeded):
        holding(ledger, "newcomer", 1 << 29)


def test_whoever_holds_most_is_refused_as_others_come():
    ledger = Ledger(TOTAL)
    hog = holding(ledger, "hog", 1100)
    holding(ledger, "other", 200)
    with pytest.raises(BudgetExceeded):
        hog.take(1, "more")
    holding(ledger, "other", 100)


def test_share_is_the_clients_whatever_the_number_of_its_requests():
    ledger = Ledger(TOTAL)
    for _ in range(12):
        holding(ledger, "c", 100)
    with pytest.raises(BudgetExceeded):
        holding(ledger, "c", 1)


@pytest.mark.parametrize(("request_bytes", "most_bytes"), [(100, 100), (None, 1200), (1500, 1200)])
def test_request_that_could_never_fit_says_so(request_bytes, most_bytes):
    ledger = Ledger(TOTAL, request_bytes)
    account = holding(ledger, "c", most_bytes - 10)
    with pytest.raises(
        BudgetExceeded, match=rf"with 20 bytes for cake .* {most_bytes + 10};"
    ) as it:
        account.take(20, "cake")
    assert not it.value.is_passing
    account.take(10, "bread")


def test_what_is_refused_is_not_taken_and_what_is_given_back_is_free_again():
    ledger = Ledger(TOTAL)
    account = holding(ledger, "c", 500)
    with pytest.raises(BudgetExceeded):
        account.take(701, "too much")
    account.give(400)
    assert (account.held_bytes, ledger.held_bytes) == (100, 100)
    account.take(1100, "fits now")
    account.keep(50)
    assert ledger.held_bytes == 50
    account.keep(60)
    account.give(1000)
    assert (account.held_bytes, ledger.held_bytes, ledger.clients) == (0, 0, 0)


def test_account_gives_all_back_on_every_path():
    ledger = Ledger(TOTAL)
    with ledger.account("c") as account:
        account.take(5, "work")
    account = ledger.account("c")
    account.take(5, "work")
    with pytest.raises(BudgetExceeded), account:
        account.take(TOTAL, "too much")
    account.close()
    assert (ledger.held_bytes, ledger.clients) == (0, 0)


def test_closed_account_lends_nothing():
    ledger = Ledger(TOTAL)
    account = ledger.account("c")
    account.close()
    with pytest.raises(ServingError) as caught:
        account.take(1, "work nobody waits for")
    assert (caught.value.code, ledger.held_bytes) == (Code.CANCELLED, 0)


steps = st.tuples(
    st.integers(0, 5),  # the account
    st.sampled_from(["take", "take", "take", "give", "keep", "close"]),
    st.integers(-10, 400),
)


@given(st.lists(steps, max_size=60))
def test_any_interleaving_adds_up(sequence):
    ledger = Ledger(TOTAL, 600)
    accounts = [ledger.account("abc"[number % 3]) for number in range(6)]
    for number, what, size_bytes in sequence:
        account = accounts[number]
        try:
            if what == "take":
                account.take(size_bytes, "a step")
            elif what == "close":
                account.close()
            else:
                getattr(account, what)(size_bytes)
        except ServingError:
            pass
        held = [each.held_bytes for each in accounts]
        assert all(0 <= each <= 600 for each in held)
        assert ledger.held_bytes == sum(held) <= TOTAL
        assert ledger.clients == len({each.client for each in accounts if each.held_bytes})
    for account in accounts:
        account.close()
    assert (ledger.held_bytes, ledger.clients) == (0, 0)


def test_threads_lose_nothing():
    ledger = Ledger(100_000)

    def work(client):
        for size_bytes in range(2000):
            with ledger.account(client) as account:
                account.take(size_bytes % 7, "a")
                account.take(size_bytes % 11, "b")
                account.give(3)

    threads = [threading.Thread(target=work, args=("ab"[number % 2],)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (ledger.held_bytes, ledger.clients) == (0, 0)


def test_nothing_stays_held_where_an_account_is_closed_while_another_thread_takes():
    class ClosedMeanwhile(Ledger):
        def _check(self, account, size_bytes, what):
            super()._check(account, size_bytes, what)
            account.close()

    ledger = ClosedMeanwhile(TOTAL)
    with pytest.raises(ServingError) as caught:
        ledger.account("a").take(10, "a test")
    assert caught.value.code is Code.CANCELLED
    assert ledger.held_bytes == ledger.clients == 0


# What requests become in memory: never less than it is, told before it is made.


MANY = 100_000
PREDICT = protos.METHODS["Predict"].path


def field(number, content):
    return encode_varint(number << 3 | 2) + encode_varint(len(content)) + content


def predict_of(tensor):
    return field(2, field(1, b"x") + field(2, tensor))


PIECES = {
    "empty inputs": ("Predict", field(2, b"") * MANY),
    "empty strings": ("Predict", predict_of(b"\x08\x07" + field(8, b"") * MANY)),
    "filter": ("Predict", field(3, b"") * MANY),
    "small numbers": ("Predict", predict_of(b"\x08\x09" + field(10, b"\1" * MANY))),
    "dimensions": ("Predict", predict_of(field(2, field(2, b"") * MANY))),
    "examples": ("Classify", field(2, field(1, field(1, b"") * MANY))),
    "tasks": ("MultiInference", field(1, b"") * MANY),
    "models": ("HandleReloadConfigRequest", field(1, field(1, field(1, b"") * MANY))),
}


@pytest.mark.parametrize(("method", "body"), PIECES.values(), ids=PIECES)
def test_message_of_tiny_pieces_counts_many_times(method, body):
    assert cost_of_message(method, body) >= 20 * len(body)


def test_message_of_one_array_counts_twice():
    request = protos.PredictRequest(model_spec={"name": "m"})
    request.inputs["x"].CopyFrom(to_proto(np.zeros((50, 20_000), np.float32)))
    request.inputs["s"].string_val.extend([b"picture" * 10_000] * 50)
    body = request.SerializeToString()
    assert 2 * len(body) <= cost_of_message("Predict", body) <= 2.1 * len(body)


def test_examples_with_pictures_count_twice():
    request = protos.ClassificationRequest()
    for _ in range(20):
        feature = request.input.example_list.examples.add().features.feature["x"]
        feature.bytes_list.value.append(b"picture" * 10_000)
    body = request.SerializeToString()
    assert 2 * len(body) <= cost_of_message("Classify", body) <= 2.1 * len(body)


@given(st.binary(max_size=200), st.sampled_from(["Predict", "Classify", "GetModelStatus"]))
def test_any_bytes_count_for_themselves_at_least(start, method):
    body = start + bytes(70_000)
    assert cost_of_message(method, body) >= 2 * len(body)


VALUES = 35_000  # more than is left uncounted; memory is traced, which takes its time
TEXTS = {
    "objects": "[" + "{}," * VALUES + "1]",
    "lists": "[" + "[]," * VALUES + "1]",
    "members": "[" + '{"a":1},' * VALUES + "1]",
    "names": json.dumps({str(number): 1 for number in range(VALUES)}),
    "strings": "[" + '"ab",' * VALUES + "1]",
    "numbers": "[" + "1.5," * VALUES + "1]",
    "one name": "{" + '"a":1,' * VALUES + '"b":1}',
    "wide": '"\U0001f600' + "x" * MANY + '"',
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("odd", [b"", b"\xff"], ids=["UTF-8", "bytes"])
def test_json_never_becomes_more_than_was_told(text, odd):
    body = b'{"x": ' + text.encode() + b', "y": "' + odd + b'"}'
    tracemalloc.start()
    try:
        json_reader.parse_object(body, Call.unbounded().account)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= cost_of_json(body)


@pytest.mark.parametrize(
    ("array", "least"),
    [
        (np.zeros((1000, 1000), np.float32), 4_000_000),
        (np.broadcast_to(np.float32(1), (1000, 1000)), 4_000_000),
        (np.full(1000, b"x" * 1000, object), 1_000_000),
        (np.broadcast_to(np.array(b"x" * 1000, object), (1000,)), 1_000_000),
    ],
)
def test_arrays_count_with_their_strings(array, least):
    for counted in (cost_of_arrays([array]), cost_of_answer([array], as_text=True)):
        assert counted >= least


def test_answer_of_nothing_in_many_lists_counts_them():
    assert cost_of_answer([np.zeros((1 << 30, 0), np.uint8)], as_text=True) >= 1 << 30


def test_what_is_small_is_not_counted():
    small = np.zeros(100, np.float32)
    assert cost_of_message("Predict", b"\x12\0" * 1000) == 0
    assert cost_of_json(b"[{}]") == cost_of_arrays([small]) == 0
    assert cost_of_answer([small], as_text=True) == 0


def test_values_that_were_left_out_are_taken_before_they_are_filled_in():
    request = protos.PredictRequest()
    request.inputs["x"].dtype = 1
    request.inputs["x"].tensor_shape.dim.add(size=1 << 20)
    request.inputs["x"].float_val.extend([1, 2])
    with pytest.raises(BudgetExceeded, match="values that were left out"):
        _ = PredictInputs(request, Ledger(1 << 20).account("c"))["x"]
    account = Ledger(1 << 30).account("c")
    assert PredictInputs(request, account)["x"].nbytes == account.held_bytes == 4 << 20


def test_stored_request_counts_as_one_that_is_sent():
    log = protos.PredictionLog()
    log.predict_log.request.inputs["x"].CopyFrom(to_proto(np.zeros((50, 20_000), np.float32)))
    log.predict_log.request.output_filter.extend([""] * MANY)
    body = log.SerializeToString()
    sent = cost_of_message("Predict", log.predict_log.request.SerializeToString())
    assert sent <= cost_of_message("PredictionLog", body) <= 1.01 * sent


@pytest.mark.parametrize("shape", [(700, 20), (7_000, 1)])
@pytest.mark.parametrize("label", [b"", b"x" * 40, b"\0" * 40])
def test_results_never_become_more_than_was_told(label, shape):
    labels = np.full(shape, label, object)
    scores = np.ones(shape, np.float32)
    outputs = {"classes": labels, "scores": scores}
    assert_within(
        cost_of_results(outputs.values()),
        lambda: _answers_of_classes(signatures.class_scores(outputs, len(scores))),
    )
    assert_within(
        cost_of_results([scores]),
        lambda: _answers_of_classes(signatures.class_scores({"scores": scores}, len(scores))),
    )
    values = np.ones(14_000, np.float32)
    assert_within(
        cost_of_results([values]),
        lambda: json_writer.regressions(
            signatures.regression_values({"outputs": values}, len(values))
        ),
    )


def _answers_of_classes(classes):
    response = protos.ClassificationResponse()
    for row in classes:
        message = response.result.classifications.add()
        for name, score in row:
            message.classes.add(label=name.decode(), score=score)
    return response.SerializeToString(), json_writer.classifications(classes)


def assert_within(told, make):
    tracemalloc.start()
    try:
        made = make()
        assert tracemalloc.get_traced_memory()[1] <= told
    finally:
        tracemalloc.stop()
    del made


# Surfaces


class GrowingHandlers:
    """Answers with as many bytes as its input says."""

    async def predict(self, model, signature, inputs, output_filter=(), *, call):
        (size,) = next(iter(inputs.values())).ravel()[:1].astype(int)
        call.account.take(size, "outputs")
        return Predicted(1, "s", {"y": np.zeros(size, np.uint8)})

    def inputs(self, model, signature):
        return SIGNATURE.inputs if signature == "serving_default" else None


SIGNATURE = protos.from_text(
    "SignatureDef", 'inputs { key: "x" value { name: "x:0" dtype: DT_FLOAT } }'
)


@pytest.mark.parametrize("size", [1, 1_000, 100_000, 3_000_000])
def test_account_keeps_no_more_than_the_answer(size):
    ledger = Ledger(1 << 30)
    request = protos.PredictRequest(model_spec={"name": "m"})
    request.inputs["x"].CopyFrom(to_proto(np.float32([size])))
    body = json.dumps({"inputs": [size]}).encode()
    with ledger.account("c") as account:
        account.take(77, "the body")
        surface = GrpcSurface(GrowingHandlers(), Metrics(), as_content=True)
        answer = surface.answer(PREDICT, request.SerializeToString(), Call(account))
        assert answer.code is Code.OK
        assert account.held_bytes <= 77 + len(answer.body)
        if size > 1000:
            assert account.held_bytes == 77 + len(answer.body)
    with ledger.account("c") as account:
        surface = RestSurface(GrowingHandlers(), Metrics())
        reply = surface.reply("POST", "/v1/models/m:predict", body, Call(account))
        assert reply.status == 200
        assert account.held_bytes <= len(reply.body)
    assert ledger.held_bytes == 0


def test_request_beyond_its_account_is_refused_and_gives_all_back():
    ledger = Ledger(1 << 20)
    with ledger.account("c") as account:
        call = Call(account)
        reply = RestSurface(GrowingHandlers(), Metrics()).reply(
            "POST", "/v1/models/m:predict", b'{"inputs": [2000000]}', call
        )
        assert (reply.status, account.held_bytes) == (413, 0)
        with ledger.account("hog") as hog:
            hog.take(ledger._shared_bytes * 4 // 5, "all it may")
            reply = RestSurface(GrowingHandlers(), Metrics()).reply(
                "POST", "/v1/models/m:predict", b'{"inputs": [700000]}', call
            )
            assert (reply.status, account.held_bytes) == (503, 0)
        answer = GrpcSurface(GrowingHandlers(), Metrics()).answer(PREDICT, b"\x12\0" * MANY, call)
        assert answer.code is Code.RESOURCE_EXHAUSTED
        assert "the message" in answer.details and not account.held_bytes


class UnspeakableError(Exception):
    def __str__(self):
        raise self


FAULTS = [
    UnspeakableError(),
    ValueError("\ud800 \udcff"),
    ServingError(Code.INVALID_ARGUMENT, "\ud800\udcff" * 100_000),
    ServingError(Code.INTERNAL, "x" * 10_000_000),
    ServingError(Code.NOT_FOUND, "\0\x1b\x7f\u202e"),
    MemoryError(),
    RecursionError("deep"),
    KeyError("\ud800"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_fault_whose_text_is_a_fault_is_told_all_the_same(fault):
    class Faulty(GrowingHandlers):
        async def predict(self, *arguments, **options):
            raise fault

    with Ledger(1 << 20).account("c") as account:
        request = protos.PredictRequest(model_spec={"name": "m"})
        answer = GrpcSurface(Faulty(), Metrics()).answer(
            PREDICT, request.SerializeToString(), Call(account)
        )
        assert answer.code is not Code.OK
        assert len(answer.details.encode("utf-8", "surrogateescape")) < 200_000
        reply = RestSurface(Faulty(), Metrics()).reply(
            "POST", "/v1/models/m:predict", b'{"inputs": [1]}', Call(account)
        )
        assert reply.status >= 400 and len(reply.body) < 500_000
        assert account.held_bytes == 0


@pytest.mark.parametrize(
    "body",
    [
        b'{"signature_name": "\\ud800", "x": "\xff", "inputs": [1]}',
        b'{"\\uDBFF": "\xff", "inputs": [1]}',
        b'{"x": "\xff\\\\\\ud83d\\u0041", "inputs": [1]}',
    ],
)
def test_half_a_character_beside_bytes_is_refused_as_it_is_alone(body):
    reply = RestSurface(GrowingHandlers(), Metrics()).reply("POST", "/v1/models/m:predict", body)
    assert reply.status == 400
    where = body.index(b"\\uD" if b"\\uD" in body else b"\\ud")
    assert f"The surrogate pair in string is invalid. at offset: {where}".encode() in reply.body


@pytest.mark.parametrize("beside", [b"", b"\xff"], ids=["alone", "beside-bytes"])
def test_second_half_of_a_character_passes_as_in_rapidjson(beside):
    body = b'{"signature_name": "\\udcff", "x": "' + beside + b'", "inputs": [1]}'
    reply = RestSurface(GrowingHandlers(), Metrics()).reply("POST", "/v1/models/m:predict", body)
    assert reply.status == 400
    assert b'Serving signature name: \\"\xed\xb3\xbf\\" not found' in reply.body


def test_whole_characters_and_what_only_looks_like_an_escape_pass_beside_bytes():
    body = b'{"x": "\xff\\ud83d\\ude00 \\\\ud800", "inputs": [1]}'
    surface = RestSurface(GrowingHandlers(), Metrics())
    assert surface.reply("POST", "/v1/models/m:predict", body).status == 200
