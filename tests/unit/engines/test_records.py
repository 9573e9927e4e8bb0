"""The state folder is nobody else's business, and nobody else's making."""

import json
import os
import stat
from pathlib import Path

import pytest

from tfserve_kit.engines import Endpoints
from tfserve_kit.engines.base import Plan
from tfserve_kit.engines.records import (
    Record,
    claimed,
    private_folder,
    records,
    write_files,
    write_private,
)
from tfserve_kit.errors import ServerFailed

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
RECORD = Record("web", "native", 1, 0.0, ("x",), Endpoints("grpc://h:1", "http://h:2"))


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield
    os.umask(before)


def test_folders_are_0700_and_files_0600_whatever_the_umask(tmp_path, umask):
    state = tmp_path / "state"
    with claimed(state, "web"):
        home = state / "servers" / "web"
        private_folder(home)
        files = {str(home / "config" / "model_config.txt"): "text"}
        write_files(Plan("web", "native", (), files, RECORD.endpoints, {}, "{}"), home)
        RECORD.write(home)
    found = {state, *state.rglob("*")}
    assert {mode(path) for path in found if path.is_dir()} == {0o700}
    assert {mode(path) for path in found if path.is_file()} == {0o600}
    assert (home / "config" / "model_config.txt").read_text() == "text"


def test_folder_that_others_may_look_into_is_closed(tmp_path):
    for folder in (tmp_path / "state", tmp_path / "state" / "servers"):
        folder.mkdir()
        folder.chmod(0o777)
    with claimed(tmp_path / "state", "web"):
        pass
    assert mode(tmp_path / "state") == mode(tmp_path / "state" / "servers") == 0o700


def test_own_link_to_an_own_folder_is_followed(tmp_path):
    (tmp_path / "big-disk").mkdir()
    (tmp_path / "state").symlink_to("big-disk")
    with claimed(tmp_path / "state", "web"):
        assert mode(tmp_path / "big-disk") == 0o700


@needs_root
@pytest.mark.parametrize("place", ["state", "state/servers"])
def test_folder_of_somebody_else_is_refused(tmp_path, place):
    (tmp_path / place).mkdir(parents=True)
    os.chown(tmp_path / place, 1234, 1234)
    with (
        pytest.raises(ServerFailed, match="belongs to user 1234") as caught,
        claimed(tmp_path / "state", "web"),
    ):
        pytest.fail("it was taken")
    assert "TFKIT_STATE_DIR" in caught.value.remedy


@needs_root
def test_link_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "state").symlink_to("mine")
    os.chown(tmp_path / "state", 1234, 1234, follow_symlinks=False)
    with (
        pytest.raises(ServerFailed, match="belongs to user 1234"),
        claimed(tmp_path / "state", "web"),
    ):
        pytest.fail("it was taken")


def test_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "state").touch()
    with pytest.raises(ServerFailed, match="not a folder"), claimed(tmp_path / "state", "web"):
        pytest.fail("it was taken")


@pytest.mark.parametrize("place", [".web.lock", "web/server.json", "web/.server.json.{pid}"])
def test_links_within_are_not_written_through(tmp_path, place):
    home = tmp_path / "state" / "servers" / "web"
    home.mkdir(parents=True)
    (tmp_path / "victim").write_text("precious")
    (home.parent / place.format(pid=os.getpid())).symlink_to(tmp_path / "victim")
    try:
        with claimed(tmp_path / "state", "web"):
            RECORD.write(home)
    except ServerFailed:
        assert place == ".web.lock"
    assert (tmp_path / "victim").read_text() == "precious"


@needs_root
def test_record_of_somebody_else_is_no_record(tmp_path):
    home = tmp_path / "servers" / "web"
    home.mkdir(parents=True)
    RECORD.write(home)
    assert records(tmp_path) == [RECORD]
    os.chown(home / "server.json", 1234, 1234)
    assert records(tmp_path) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, '{"endpoints": 7}', "\0"])
def test_damaged_record_is_no_record(tmp_path, text):
    (tmp_path / "server.json").write_text(text)
    assert Record.read(tmp_path) is None


def test_file_is_replaced_in_one_step_and_may_keep_its_mode(tmp_path):
    file = Path(tmp_path, "a.txt")
    file.write_text("old")
    file.chmod(0o644)
    with file.open() as reader:
        write_private(file, "new", like=file)
        assert reader.read() == "old"
    assert (file.read_text(), mode(file)) == ("new", 0o644)
    write_private(file, json.dumps({}))
    assert mode(file) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]
