"""Copying trees: every byte, every checksum, by whichever way the system offers."""

import errno
import fcntl
import os
from hashlib import sha256

import pytest

from tfserve_kit.errors import PushRefused
from tfserve_kit.progress import SILENT
from tfserve_kit.repository import disk
from tfserve_kit.repository.disk import checksums, copy_tree
from tfserve_kit.repository.manifest import File

SMALL, LARGE = os.urandom(3000), os.urandom((1 << 20) + 12_345)
FILES = {
    "empty": b"",
    "a/small": SMALL,
    "a/b/c/large": LARGE,
    "a/limit": os.urandom(1 << 20),
    "ünï.txt": b"x",
}


class Counts:
    def __init__(self, act=None):
        self.counts, self.act = [], act

    def step(self, text):
        pass

    def note(self, text):
        pass

    def advance(self, done, total):
        self.counts.append((done, total))
        if self.act is not None:
            self.act()


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "a" / "nothing").mkdir()
    return folder


@pytest.fixture
def target(tmp_path):
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def described(files):
    return {name: File(len(data), sha256(data).hexdigest()) for name, data in files.items()}


def test_every_file_is_copied_and_described(source, target):
    progress = Counts()
    assert copy_tree(source, target, progress) == described(FILES)
    assert tree(target) == FILES
    assert (target / "a" / "nothing").is_dir()
    total = sum(map(len, FILES.values()))
    assert progress.counts[-1] == (total, total)
    assert progress.counts == sorted(progress.counts)
    assert checksums(target) == described(FILES)


def test_empty_folder_is_copied(tmp_path, target):
    (tmp_path / "nothing").mkdir()
    assert copy_tree(tmp_path / "nothing", target, SILENT) == {}


def test_links_are_followed(source, target, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far").write_bytes(b"far")
    (source / "folder").symlink_to(tmp_path / "elsewhere")
    (source / "file").symlink_to(tmp_path / "elsewhere" / "far")
    files = copy_tree(source, target, SILENT)
    assert {"folder/far", "file"} <= files.keys()
    assert (target / "folder" / "far").read_bytes() == b"far"
    assert not any(path.is_symlink() for path in target.rglob("*"))


def refusing(code):
    def call(*_):
        raise OSError(code, os.strerror(code))

    return call


class TestWays:
    """Large files are cloned, copied by the kernel, or copied here."""

    @pytest.fixture
    def no_clone(self, monkeypatch):
        monkeypatch.setattr(fcntl, "ioctl", refusing(errno.EOPNOTSUPP))

    def test_clone_that_the_file_system_makes(self, source, target, monkeypatch):
        def ioctl(writer, request, reader):
            assert request == 0x40049409
            os.write(writer, os.pread(reader, 1 << 24, 0))

        monkeypatch.setattr(fcntl, "ioctl", ioctl)
        monkeypatch.delattr(os, "copy_file_range")
        assert copy_tree(source, target, SILENT) == described(FILES)
        assert tree(target) == FILES

    @pytest.mark.usefixtures("no_clone")
    def test_copy_in_ranges_however_short(self, source, target, monkeypatch):
        def copy(reader, writer, size, start, at):
            return os.pwrite(writer, os.pread(reader, min(size, 100_000), start), at)

        monkeypatch.setattr(os, "copy_file_range", copy)
        assert copy_tree(source, target, SILENT) == described(FILES)
        assert tree(target) == FILES

    @pytest.mark.usefixtures("no_clone")
    @pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EINVAL])
    def test_copy_here_where_the_kernel_cannot(self, source, target, monkeypatch, code):
        monkeypatch.setattr(os, "copy_file_range", refusing(code))
        assert copy_tree(source, target, SILENT) == described(FILES)
        assert tree(target) == FILES

    @pytest.mark.usefixtures("no_clone")
    def test_full_disk_is_no_reason_to_try_another_way(self, source, target, monkeypatch):
        monkeypatch.setattr(os, "copy_file_range", refusing(errno.ENOSPC))
        with pytest.raises(OSError, match="No space"):
            copy_tree(source, target, SILENT)

    def test_reads_and_writes_may_be_short(self, source, target, monkeypatch):
        read, write = os.read, os.write
        monkeypatch.setattr(os, "read", lambda fd, size: read(fd, min(size, 1000)))
        monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data[:700])))
        monkeypatch.setattr(disk, "_SMALL_BYTES", 1 << 30)
        assert copy_tree(source, target, SILENT) == described(FILES)
        assert tree(target) == FILES


class TestChanges:
    """A file that somebody writes to meanwhile is refused."""

    @pytest.mark.parametrize("name", ["a/small", "a/b/c/large"])
    @pytest.mark.parametrize("size", [5, 2_000_000])
    def test_change_of_length_is_noticed(self, source, target, monkeypatch, name, size):
        real = os.open

        def open_(path, flags, *mode):
            if str(path) == f"{source}/{name}":
                os.truncate(path, size)
            return real(path, flags, *mode)

        monkeypatch.setattr(os, "open", open_)
        with pytest.raises((PushRefused, OSError), match=r"changed|shorter"):
            copy_tree(source, target, SILENT)

    def test_change_of_content_is_noticed_by_its_time(self, source, target, monkeypatch):
        real = os.open

        def open_(path, flags, *mode):
            if str(path) == f"{source}/a/small":
                os.utime(path, ns=(1, 1))
            return real(path, flags, *mode)

        monkeypatch.setattr(os, "open", open_)
        with pytest.raises(PushRefused, match="a/small changed while it was copied"):
            copy_tree(source, target, SILENT)


class TestRefusals:
    def test_pipe_is_refused(self, source, target):
        os.mkfifo(source / "a" / "pipe")
        with pytest.raises(PushRefused, match="a/pipe is neither a file nor a folder"):
            copy_tree(source, target, SILENT)

    def test_link_to_nowhere_is_an_error(self, source, target):
        (source / "link").symlink_to("nowhere")
        with pytest.raises(FileNotFoundError):
            copy_tree(source, target, SILENT)

    def test_folder_within_itself_is_an_error(self, source, target):
        (source / "a" / "circle").symlink_to(source)
        with pytest.raises(OSError, match="symbolic links"):
            copy_tree(source, target, SILENT)
        assert not list(target.iterdir())

    def test_nothing_is_overwritten(self, source, target):
        (target / "empty").write_bytes(b"mine")
        with pytest.raises(FileExistsError):
            copy_tree(source, target, SILENT)
        assert (target / "empty").read_bytes() == b"mine"

    def test_failing_progress_ends_it(self, source, target):
        def stop():
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            copy_tree(source, target, Counts(stop))
