"""Versions moved by their labels, who needs which, and roll-backs: with a server in memory."""

import shutil
import tomllib

import pytest

from tfserve_kit.errors import PushRefused, ServerFailed, UsageError
from tfserve_kit.progress import Silent
from tfserve_kit.repository import list_versions, versions
from tfserve_kit.serving import reload
from tfserve_kit.serving.access import ServedModel
from tfserve_kit.serving.rollback import (
    abort,
    bring_back,
    canary,
    claims,
    promote,
    roll_back,
)


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def numbers(base_path):
    return [version.number for version in list_versions(base_path)]


class TestLabels:
    def test_canary_is_loaded_first_and_labelled_then(self, serve):
        server = serve(versions={"specific": [1]})
        served = canary(server, "half", 2)
        assert served.versions == (1, 2) and served.labels == {"canary": 2}
        assert server.available("half") == {1, 2} and server.labels("half") == {"canary": 2}
        assert "version_labels" not in server.told[-2] and "version_labels" in server.told[-1]

    def test_promotion_moves_the_label_and_unloads_what_has_none(self, serve):
        server = serve(versions={"specific": [1]})
        promote(server, "half", 1)
        canary(server, "half", 3)
        assert promote(server, "half").labels == {"stable": 3}  # the canary, if none is named
        assert server.available("half") == {3} and server.labels("half") == {"stable": 3}

    def test_promotion_can_keep_what_is_loaded(self, serve):
        server = serve(versions={"specific": [1]})
        assert promote(server, "half", 2, keep_old=True).versions == (1, 2)
        assert server.available("half") == {1, 2}

    def test_without_a_canary_the_highest_is_promoted(self, serve):
        assert promote(serve(versions={"specific": [1]}), "half").labels == {"stable": 3}

    def test_canary_that_is_aborted_is_unloaded(self, serve):
        server = serve(versions={"specific": [1]})
        canary(server, "half", 2)
        assert abort(server, "half").labels == {}
        assert server.available("half") == {1}

    def test_canary_that_is_aborted_stays_loaded_where_another_label_names_it(self, serve):
        server = serve(versions={"specific": [1]})
        canary(server, "half", 2)
        promote(server, "half", 2, label="next", keep_old=True)
        canary(server, "half", 2)
        assert abort(server, "half").labels == {"next": 2}
        assert 2 in server.available("half")

    def test_version_that_does_not_load_leaves_the_server_as_it_was(self, serve):
        server = serve(versions={"specific": [1]})
        server.broken[2] = "checksum"
        with pytest.raises(ServerFailed, match="could not load version 2 of 'half': checksum"):
            canary(server, "half", 2)
        assert server.told[-1] == server.told[0]
        assert reload.deployment(server.home) == server.spec

    @pytest.mark.parametrize(
        ("act", "text"),
        [
            (lambda server: abort(server, "half"), "has no canary"),
            (lambda server: canary(server, "halve", 1), "has no model 'halve'"),
            (lambda server: canary(server, "half", 9), "no version 9 of 'half'"),
        ],
    )
    def test_what_is_not_there_is_refused_with_what_is(self, serve, act, text):
        with pytest.raises(UsageError, match=text) as caught:
            act(serve(versions={"specific": [1]}))
        assert caught.value.remedy

    def test_canary_that_is_all_there_is_cannot_be_aborted(self, serve):
        server = serve(versions={"specific": [1]})
        promote(server, "half", 1, label="canary")
        with pytest.raises(UsageError, match="is all that is loaded"):
            abort(server, "half")

    def test_incomplete_version_is_refused_before_the_server_hears_of_it(self, serve, base_path):
        (base_path / "2" / "saved_model.pb").unlink()
        server = serve(versions={"specific": [1]})
        with pytest.raises(UsageError, match="version 2 of 'half' is not a complete SavedModel"):
            canary(server, "half", 2)
        assert len(server.told) == 1

    def test_what_is_served_is_shown_as_the_deployment_file_has_it(self, serve):
        server = serve(versions={"specific": [1]})
        served = canary(server, "half", 2)
        shown = tomllib.loads(served.as_toml())["models"]["half"]
        kept = reload.deployment(server.home).models["half"]
        assert tuple(shown["versions"]["specific"]) == kept.versions.specific
        assert shown["labels"] == kept.labels


class TestClaims:
    def test_server_says_what_it_serves_and_its_deployment_what_it_names(self, serve, base_path):
        promote(serve(versions={"specific": [1, 2]}), "half", 1, keep_old=True)
        assert [(each.version, each.reason) for each in claims(base_path)] == [
            (1, "labelled"),
            (1, "pinned"),
            (1, "served"),
            (2, "pinned"),
            (2, "served"),
        ]

    def test_server_that_does_not_answer_keeps_what_it_would_load(self, serve, base_path):
        serve(versions={"latest": 2}).answers = False
        told = Notes()
        found = claims(base_path, progress=told)
        assert [(each.version, each.reason) for each in found] == [
            (2, "among the latest"),
            (3, "among the latest"),
        ]
        assert "does not answer" in told.notes[0]

    def test_server_whose_deployment_cannot_be_read_is_told(self, serve, base_path):
        server = serve()
        document = (server.home / "deployment.json").read_text()
        broken = document.replace('"grpc_port":', '"port":')
        (server.home / "deployment.json").write_text(broken)
        told = Notes()
        assert claims(base_path, progress=told) == []
        assert "is not known" in told.notes[0]

    def test_deployment_that_is_not_served_counts_too(self, serve, base_path, tmp_path):
        server = serve(versions={"specific": [2]}, labels={"stable": 2})
        shutil.rmtree(server.home)
        found = claims(base_path, server.spec)
        assert {str(each) for each in found} == {
            "version 2 is labelled 'stable' by the deployment file",
            "version 2 is pinned by the deployment file",
        }

    def test_base_path_that_cannot_be_read_is_refused(self, tmp_path):
        with pytest.raises(UsageError, match="cannot read"):
            claims(tmp_path / "none")


class TestRollBack:
    def test_versions_above_go_and_each_place_is_waited_for(self, serve, base_path):
        serve()
        place = ServedModel("grpc://h:1", "half", base_path)
        done = roll_back(base_path, 1, places=[place])
        assert done == (1, [2, 3], [place])
        assert numbers(base_path) == [1] and sorted(versions.retired(base_path)) == [2, 3]

    def test_place_that_does_not_follow_is_told_and_the_versions_stay_retired(
        self, serve, base_path
    ):
        serve().broken[2] = "checksum"
        with pytest.raises(ServerFailed, match="version 2 of 'half' failed to load"):
            roll_back(base_path, places=[ServedModel("grpc://h:1", "half")])
        assert numbers(base_path) == [1, 2]

    def test_version_that_somebody_names_is_kept_unless_forced(self, serve, base_path):
        serve(versions={"specific": [3]})
        with pytest.raises(PushRefused, match="version 3 is pinned by server 'web'") as caught:
            roll_back(base_path)
        assert "tfkit promote" in caught.value.remedy and numbers(base_path) == [1, 2, 3]
        assert roll_back(base_path, is_forced=True)[1] == [3]

    def test_retired_version_is_brought_back(self, serve, base_path):
        serve()
        roll_back(base_path)
        place = ServedModel("grpc://h:1", "half")
        assert bring_back(base_path, 3, places=[place]) == [place]
        assert numbers(base_path) == [1, 2, 3]

    def test_version_below_another_is_brought_back_in_vain(self, serve, base_path):
        serve()
        roll_back(base_path, 1)
        bring_back(base_path, 3)
        with pytest.raises(ServerFailed, match=r"version 2 of 'half'.*not AVAILABLE"):
            bring_back(base_path, 2, places=[ServedModel("grpc://h:1", "half")], timeout_s=0.1)
        assert numbers(base_path) == [1, 2, 3]
