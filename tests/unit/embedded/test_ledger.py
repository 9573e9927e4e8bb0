"""The ledger of bytes: nothing is ever lost or made up, and nobody takes everything."""

import contextlib
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfserve_kit.embedded.ledger import BudgetExceeded, Ledger
from tfserve_kit.embedded.status import Code, ServingError

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
