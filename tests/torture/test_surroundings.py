"""A push whose surroundings change under it: disk, rights, limits, the base path, the source."""

import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.torture.operations import Count, Meddler, observed
from tests.torture.versions_on_disk import make_model, tree, violations
from tfserve_kit import processes
from tfserve_kit.errors import PushRefused
from tfserve_kit.repository import list_versions, push
from tfserve_kit.repository.versions import retire

STEPS = ("checking", "copying", "checking the copy", "writing")
NOBODY = 65534


class At:
    """A progress that does something once, when a step has begun."""

    def __init__(self, step, act):
        self.left, self.act = step, act

    def step(self, text):
        if self.left and text.startswith(self.left):
            self.left = None
            self.act()

    def note(self, text):
        pass

    def advance(self, done, total):
        pass


@pytest.fixture
def source(quick_folder):
    model = make_model(quick_folder / "source")
    for path in model.rglob("*"):
        os.utime(path, (1, 1))
    return model


@pytest.fixture
def base(quick_folder, source):
    """Return a base path that holds one version."""
    (quick_folder / "deep").mkdir()
    push(source, quick_folder / "deep" / "model")
    return quick_folder / "deep" / "model"


def remount(folder, option):
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def refusal(source, base_path, **options):
    with pytest.raises(PushRefused) as caught:
        push(source, base_path, **options)
    assert caught.value.remedy or "\n  - " in str(caught.value)
    return str(caught.value)


class TestDisk:
    def test_model_larger_than_the_disk_is_refused(self, source, mount):
        disk = mount("tmpfs", "size=900k")
        text = refusal(source, disk / "new" / "model")
        assert "No space left" in text and "free some space" in text
        assert tree(disk) == {}

    @pytest.mark.parametrize("inodes", range(4, 18, 3))
    def test_disk_without_inodes_is_refused(self, source, mount, inodes):
        disk = mount("tmpfs", f"size=9m,nr_inodes={inodes}")
        assert "No space left" in refusal(source, disk / "model")
        assert tree(disk) == {}

    @pytest.mark.parametrize("step", STEPS)
    def test_disk_that_becomes_read_only_shows_nothing_new(self, source, mount, step):
        disk = mount("tmpfs", "size=9m")
        push(source, disk)
        older = {1: tree(disk / "1")}
        refusal(source, disk, progress=At(step, lambda: remount(disk, "ro")))
        assert [version.number for version in list_versions(disk)] == [1]
        assert violations(disk, older=older) == []
        remount(disk, "rw")
        assert push(source, disk).version == 2
        assert violations(disk, older=older) == []

    def test_versions_of_a_lower_layer_get_a_new_one_beside_them(self, source, mount):
        upper = mount("tmpfs", "size=20m")
        for name in ("lower", "upper", "work"):
            (upper / name).mkdir()
        push(source, upper / "lower" / "model")
        layers = f"lowerdir={upper}/lower,upperdir={upper}/upper,workdir={upper}/work"
        base_path = mount("overlay", f"{layers},redirect_dir=off") / "model"
        older = {1: tree(base_path / "1")}
        assert push(source, base_path).version == 2
        assert violations(base_path, older=older) == []
        with pytest.raises(PushRefused, match="cross-device"):  # it would have to be copied
            retire(base_path, 1)
        assert violations(base_path, older=older) == []
        assert [version.number for version in list_versions(base_path)] == [1, 2]


class TestLimits:
    def test_any_limit_of_open_files_refuses_or_suffices(self, source, base):
        """Where not even a folder can be opened to be emptied, the hidden one stays."""
        before = tree(base)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        refused, limit = [], 3
        while len(list_versions(base)) == 1 and limit < 2000:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            try:
                push(source, base)
                continue
            except PushRefused as error:
                refused.append(str(error))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert {path: data for path, data in tree(base).items() if path[0] != "."} == before
            limit += 1
        assert len(refused) > 1
        assert violations(base) == []
        assert "Too many open files" in refused[-1]


@pytest.fixture
def unprivileged(quick_folder, base):
    """Own the folder of the test as somebody whom rights stop."""
    if os.geteuid():
        yield
        return
    for path in (quick_folder, *quick_folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


class TestRights:
    @pytest.mark.parametrize("step", STEPS)
    def test_base_path_that_becomes_read_only_is_refused(self, source, base, unprivileged, step):
        older = {1: tree(base / "1")}
        text = refusal(source, base, progress=At(step, lambda: base.chmod(0o500)))
        assert "Permission denied" in text and "write to the base path" in text
        base.chmod(0o755)
        assert violations(base, older=older) == []
        assert push(source, base).version == 2

    @pytest.mark.parametrize("name", ["saved_model.pb", "assets/large.bin", "variables"])
    def test_unreadable_part_of_the_model_is_refused(self, source, base, unprivileged, name):
        before = tree(base)
        refusal(source, base, progress=At("checking", lambda: (source / name).chmod(0)))
        (source / name).chmod(0o755)
        assert tree(base) == before

    @pytest.mark.skipif(os.geteuid() != 0, reason="one user cannot be two")
    def test_staging_folder_of_another_user_is_left_alone(self, source, base, unprivileged):
        """Whose process may be hidden, so that it looks like one that was killed."""
        theirs = base / f".tfkit-staging-{2**22}.1.{processes.host()}.x"
        os.seteuid(0)
        theirs.mkdir(0o700)
        os.seteuid(NOBODY)
        push(source, base)
        assert theirs.exists()
        os.seteuid(0)
        push(source, base)
        assert not theirs.exists()


class TestBasePath:
    @pytest.mark.parametrize("step", STEPS)
    def test_base_path_deleted_meanwhile_is_refused(self, source, base, step):
        refusal(source, base, progress=At(step, lambda: shutil.rmtree(base)))
        assert not base.exists()
        assert push(source, base).version == 1

    @pytest.mark.parametrize("step", STEPS)
    def test_base_path_renamed_meanwhile_is_refused(self, source, base, step):
        moved, before = base.with_name("moved"), tree(base)
        text = refusal(source, base, progress=At(step, lambda: base.rename(moved)))
        assert "was moved, replaced or deleted" in text
        assert not base.exists()
        assert tree(moved) == before

    @pytest.mark.parametrize("step", STEPS)
    @pytest.mark.parametrize("by", ["nothing", "a folder", "a link", "a copy", "a link to a copy"])
    def test_base_path_replaced_meanwhile_is_refused(self, source, base, step, by):
        """A copy holds the hidden folder of the push as well, in whatever state it was."""
        moved, other, before = base.with_name("moved"), base.with_name("other"), tree(base)

        def replace():
            base.rename(moved)
            if "copy" in by:
                shutil.copytree(moved, other if "link" in by else base)
            if by in {"a folder", "a link"}:
                (other if "link" in by else base).mkdir()
            if "link" in by:
                base.symlink_to(other)

        text = refusal(source, base, progress=At(step, replace))
        assert "was moved, replaced or deleted" in text
        assert tree(moved) == before
        if base.exists():
            assert [version.number for version in list_versions(base)] == [1] * ("copy" in by)
            assert violations(base) == []

    @pytest.mark.parametrize("nth", [1, 2])
    def test_base_path_replaced_at_the_last_moment_is_refused(self, source, base, nth):
        moved, before = base.with_name("moved"), tree(base)

        def replace():
            if base.exists():
                base.rename(moved)
                base.mkdir()

        with observed(Meddler("rename" if nth == 1 else "fsync", nth, replace)):
            text = refusal(source, base)
        assert "was moved, replaced or deleted" in text
        assert (tree(moved), tree(base)) == (before, {})

    def test_link_to_the_folder_that_was_moved_is_the_same_base_path(self, source, base):
        moved = base.with_name("moved")

        def move():
            base.rename(moved)
            base.symlink_to(moved)

        assert push(source, base, progress=At("writing", move)).version == 2
        assert [version.number for version in list_versions(moved)] == [1, 2]

    def test_folder_that_somebody_else_made_anew_stays(self, source, quick_folder):
        base = quick_folder / "deep" / "new"

        def anew():
            shutil.rmtree(base)
            base.mkdir()

        refusal(source, base, progress=At("writing", anew))
        assert base.exists()

    def test_staging_folder_deleted_meanwhile_is_refused(self, source, base):
        def delete():
            for each in base.glob(".tfkit-staging-*"):
                shutil.rmtree(each)

        before = tree(base)
        refusal(source, base, progress=At("writing", delete))
        assert tree(base) == before


def cut(file):
    os.truncate(file, 5)


def grow(file):
    with file.open("ab") as stream:
        stream.write(b"more")


def overwrite(file):
    with file.open("r+b") as stream:
        stream.write(b"other")


def replaced(file):
    (file.parent / "new").write_bytes(b"other")
    (file.parent / "new").rename(file)


class TestSource:
    """`ioctl` is the first thing that is done with a large file."""

    @pytest.mark.parametrize("act", [cut, grow, overwrite])
    @pytest.mark.parametrize("operation", ["ioctl", "copy_file_range", "chmod"])
    def test_large_file_that_changes_while_it_is_copied_is_refused(
        self, source, base, operation, act
    ):
        file, before = source / "assets" / "large.bin", tree(base)
        meddler = Meddler(operation, 1, lambda: act(file))
        if operation == "chmod":  # when all is copied, it may change
            with observed(meddler):
                assert push(source, base).version == 2
        elif operation == "copy_file_range" and self.shares_blocks(source):
            pytest.skip("files share their blocks here instead")
        else:
            with observed(meddler):
                text = refusal(source, base)
            assert f"{file} changed while it was copied" in text
            assert "wait until the export has finished" in text
            assert tree(base) == before
        assert violations(base) == []

    @staticmethod
    def shares_blocks(folder):
        done = Count()
        with observed(done):
            push(folder, folder.parent / "trial")
        return "copy_file_range" not in done.names

    @pytest.mark.parametrize("act", [cut, grow, overwrite, replaced, Path.unlink])
    @pytest.mark.parametrize(
        "name", ["saved_model.pb", "assets/deep/1.txt", "variables/variables.index"]
    )
    def test_file_that_changes_at_any_read_is_refused_or_copied_whole(
        self, source, base, name, act, long
    ):
        whole, nth, ended = tree(source), 1, False
        while not ended:
            meddler = Meddler("read", nth, lambda: act(source / name))
            try:
                with observed(meddler):
                    made = push(source, base).path
            except PushRefused:
                pass
            else:
                copy = tree(made)
                del copy["assets.extra"], copy["assets.extra/tfkit.manifest.json"]
                assert copy in (whole, tree(source))
                shutil.rmtree(made)
            ended = meddler.names.count("read") < nth
            assert [version.number for version in list_versions(base)] == [1]
            assert violations(base) == []
            (source / name).unlink(missing_ok=True)
            (source / name).write_bytes(whole[name])
            os.utime(source / name, (1, 1))
            nth += 1 if long else 5
        assert nth > 10
