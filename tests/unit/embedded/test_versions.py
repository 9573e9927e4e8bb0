"""The availability-preserving policy: what is served goes only after its replacement is there."""

import pytest

from tfserve_kit.embedded.manager import Load, State, Unload, VersionView, next_action

START, LOADING, AVAILABLE = State.START, State.LOADING, State.AVAILABLE
UNLOADING, END = State.UNLOADING, State.END


def views(*rows):
    """Return views; a row is (number, state) if aspired, (number, state, False) if not."""
    return [VersionView(number, state, not rest) for number, state, *rest in rows]


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        pytest.param([], None, id="nothing-known"),
        pytest.param([(1, START)], Load(1), id="first-version-loads"),
        pytest.param([(1, START), (3, START), (2, START)], Load(3), id="highest-loads-first"),
        pytest.param([(3, LOADING), (2, START)], Load(2), id="next-loads-beside-a-loading-one"),
        pytest.param([(1, LOADING)], None, id="loading-is-waited-for"),
        pytest.param([(1, AVAILABLE)], None, id="settled"),
        pytest.param([(1, END)], None, id="ended-is-left-alone"),
        pytest.param([(2, UNLOADING)], None, id="unloading-is-waited-for"),
        pytest.param([(1, AVAILABLE, False), (2, START)], Load(2), id="new-loads-while-old-serves"),
        pytest.param(
            [(1, AVAILABLE, False), (2, LOADING)], None, id="old-stays-until-new-is-there"
        ),
        pytest.param([(1, AVAILABLE, False), (2, END)], None, id="old-stays-when-new-failed"),
        pytest.param(
            [(1, AVAILABLE, False), (2, UNLOADING)], None, id="old-stays-when-new-is-going"
        ),
        pytest.param(
            [(1, AVAILABLE, False), (2, AVAILABLE)], Unload(1), id="old-goes-once-new-is-there"
        ),
        pytest.param(
            [(2, AVAILABLE, False), (1, AVAILABLE, False), (3, AVAILABLE)],
            Unload(1),
            id="lowest-goes-first",
        ),
        pytest.param(
            [(1, AVAILABLE, False), (3, AVAILABLE), (2, START)],
            Unload(1),
            id="unload-comes-before-further-loads",
        ),
        pytest.param([(1, AVAILABLE, False)], Unload(1), id="none-aspired-unloads"),
        pytest.param(
            [(1, LOADING, False), (2, AVAILABLE)], None, id="surplus-that-still-loads-is-waited-for"
        ),
        pytest.param([(1, START, False)], None, id="unwanted-before-it-began-never-loads"),
        pytest.param([(1, UNLOADING, False), (2, AVAILABLE)], None, id="surplus-unloads-only-once"),
        pytest.param(
            [(2, AVAILABLE, False), (1, START)], Load(1), id="rollback-loads-the-older-first"
        ),
    ],
)
def test_next_action_for_versions_is(versions, expected):
    assert next_action(views(*versions)) == expected


def test_state_numbers_are_those_of_the_status_message():
    from tfserve_kit import protos

    official = protos.enum("ModelVersionStatus.State").values_by_name
    assert {state.name: int(state) for state in State} == {
        name: value.number for name, value in official.items()
    }
