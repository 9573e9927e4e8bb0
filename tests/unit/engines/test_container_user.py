"""Whom a container's server runs as, and whether that user can read the models."""

import os
import stat

import pytest

from tfserve_kit import deployment as spec
from tfserve_kit.engines import container_user
from tfserve_kit.engines.container_user import default_user, hand_over, unreadable
from tfserve_kit.engines.docker import DockerEngine
from tfserve_kit.errors import EngineUnavailable

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def base(tmp_path):
    (tmp_path / "base" / "1" / "variables").mkdir(parents=True)
    (tmp_path / "base" / "1" / "saved_model.pb").write_text("x")
    for place in (tmp_path / "base").rglob("*"):
        place.chmod(0o755 if place.is_dir() else 0o644)
    (tmp_path / "base").chmod(0o755)
    return tmp_path / "base"


class TestDefault:
    def test_invoking_user_who_is_not_root(self, monkeypatch, base):
        monkeypatch.setattr(os, "geteuid", lambda: 1234)
        monkeypatch.setattr(os, "getuid", lambda: 1234)
        monkeypatch.setattr(os, "getgid", lambda: 99)
        assert default_user([str(base)]) == "1234:99"

    @needs_root
    def test_nobody_for_root_with_models_of_root(self, base, tmp_path):
        assert default_user([str(base), str(tmp_path / "missing"), "gs://b/m"]) == "65534:65534"

    @needs_root
    def test_owner_of_the_models_for_root(self, base):
        os.chown(base, 1234, 99)
        assert default_user([str(base)]) == "1234:99"

    @needs_root
    def test_nobody_for_root_with_models_of_several(self, base, tmp_path):
        os.chown(base, 1234, 99)
        (tmp_path / "other").mkdir()
        os.chown(tmp_path / "other", 1235, 99)
        assert default_user([str(base), str(tmp_path / "other")]) == "65534:65534"


class TestUnreadable:
    def test_what_everybody_may_read_is_fine(self, base):
        assert unreadable("65534:65534", str(base)) is None

    @pytest.mark.parametrize(
        ("place", "mode"),
        [(".", 0o700), ("1", 0o744), ("1/variables", 0o750), ("1/saved_model.pb", 0o640)],
    )
    def test_first_thing_that_is_closed_is_found(self, base, place, mode):
        (base / place).chmod(mode)
        assert unreadable("65534:65534", str(base)) == base / place

    def test_owner_and_group_have_bits_of_their_own(self, base):
        file = base / "1" / "saved_model.pb"
        owner, group = file.stat().st_uid, file.stat().st_gid
        file.chmod(0o440)
        assert unreadable(f"{owner}:77", str(base)) is None
        assert unreadable(f"77:{group}", str(base)) is None
        assert unreadable("77:77", str(base)) == file
        file.chmod(0o044)
        assert unreadable(f"{owner}:{group}", str(base)) == file

    def test_hidden_folders_and_dead_links_do_not_count(self, base):
        (base / ".tfkit-staging-1").mkdir(mode=0o700)
        (base / "1" / "link").symlink_to("nowhere")
        assert unreadable("65534:65534", str(base)) is None

    def test_of_a_name_nothing_is_said(self, base):
        base.chmod(0o700)
        assert unreadable("serving", str(base)) is None

    def test_server_is_not_started_and_the_remedy_named(self, base, tmp_path):
        base.chmod(0o700)
        document = {"models": {"m": {"base_path": str(base)}}, "docker": {"user": "65534:65534"}}
        deployment = spec.build(document, source="test", folder=tmp_path)
        with pytest.raises(EngineUnavailable, match="65534:65534, who cannot read") as caught:
            DockerEngine(folder=tmp_path / "state").prepare(deployment)
        assert "chmod -R o+rX" in caught.value.remedy
        assert '"0:0"' in caught.value.remedy


class TestHandOver:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "config").mkdir(mode=0o700)
        (tmp_path / "config" / "a.txt").touch(mode=0o600)
        return tmp_path / "config"

    def test_own_user_has_them_already(self, folder):
        hand_over(folder, f"{os.geteuid()}:1")
        assert stat.S_IMODE((folder / "a.txt").stat().st_mode) == 0o600

    @needs_root
    def test_root_gives_them_away(self, folder):
        hand_over(folder, "1234:99")
        for path in (folder, folder / "a.txt"):
            assert (path.stat().st_uid, path.stat().st_gid) == (1234, 99)
        assert stat.S_IMODE((folder / "a.txt").stat().st_mode) == 0o600

    def test_others_open_them_within_their_closed_folder(self, folder, monkeypatch):
        monkeypatch.setattr(container_user.os, "geteuid", lambda: 4321)
        hand_over(folder, "1234:99")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755
        assert stat.S_IMODE((folder / "a.txt").stat().st_mode) == 0o644
