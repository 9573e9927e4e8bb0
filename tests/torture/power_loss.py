"""A file system on which only what was synced is sure to survive.

`Recorder` writes down what a push does to the disk; `survivors` gives the folders that may be found
after the power failed at any moment. A synced file keeps its content and mode, a synced folder its
entries; a rename is there or not there as a whole, sure once the folder it leads to is synced. All
else may have reached the disk or not, in any order.
"""

# What stands behind the functions of `os` gets what they get:
# ruff: noqa: PTH100, PTH112, PTH115, PTH116, PTH123, PTH208
import os
import random
import stat
import threading
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Effect:
    """One change on the disk.

    Attributes:
        kind: link, unlink, move, data, size or mode; sync for what makes others sure.
        node: the file or folder whose sync makes it sure; None in a sync of all.
        details: what changes.
    """

    kind: str
    node: object
    details: tuple = ()

    @property
    def names(self):
        """Whether it changes the entries of a folder."""
        return self.kind in {"link", "unlink", "move"}


@dataclass
class Node:
    """A folder where `entries` is a mapping, else a file."""

    mode: int
    entries: dict | None = None
    data: bytearray = field(default_factory=bytearray)


class Recorder:
    """An observer that writes down every change below a folder."""

    def __init__(self, root):
        self.root, self.effects = os.fspath(root), []
        self._generation = {}  # inode numbers are used again
        self._lock = threading.RLock()
        self.nodes, self.top = {}, self._id(os.stat(root))
        self._snapshot(self.root)

    def _id(self, found):
        return found.st_ino, self._generation.get(found.st_ino, 0)

    def _snapshot(self, path):
        found = os.stat(path)
        node = Node(stat.S_IMODE(found.st_mode))
        if os.path.isdir(path):
            names = os.listdir(path)
            node.entries = {name: self._snapshot(f"{path}/{name}") for name in names}
        else:
            with open(path, "rb") as stream:
                node.data = bytearray(stream.read())
        self.nodes[self._id(found)] = node
        return self._id(found)

    def __call__(self, name, real, *arguments, **options):
        act = getattr(self, f"_{name}", None)
        if act is None:
            return real(*arguments, **options)
        with self._lock:
            return act(real, *arguments, **options)

    def _add(self, kind, node, *details):
        self.effects.append(Effect(kind, node, details))

    def _place(self, path, dir_fd=None):
        """Return folder and name of a path, None where it is somebody else's."""
        path = os.fspath(path)
        if dir_fd is not None:
            path = f"{os.readlink(f'/proc/self/fd/{dir_fd}')}/{path}"
        folder, name = os.path.split(os.path.abspath(path))
        folder = os.path.realpath(folder)
        if folder != self.root and not folder.startswith(f"{self.root}/"):
            return None
        return self._id(os.stat(folder)), name

    def _known(self, path_or_fd):
        found = os.stat(path_or_fd)
        return self._id(found) if self._id(found) in self.nodes else None

    def _new(self, path, dir_fd, node_of):
        found = os.stat(path, dir_fd=dir_fd)
        self._generation[found.st_ino] = self._generation.get(found.st_ino, 0) + 1
        node = self._id(found)
        self.nodes[node] = node_of(stat.S_IMODE(found.st_mode))
        folder, name = self._place(path, dir_fd)
        self._add("link", folder, name, node)

    def _mkdir(self, real, path, *rest, dir_fd=None, **options):
        real(path, *rest, dir_fd=dir_fd, **options)
        if self._place(path, dir_fd):
            self._new(path, dir_fd, lambda mode: Node(mode, entries={}))

    def _open(self, real, path, flags, *rest, dir_fd=None, **options):
        there = True
        if flags & os.O_CREAT:
            try:
                os.stat(path, dir_fd=dir_fd)
            except FileNotFoundError:
                there = False
        descriptor = real(path, flags, *rest, dir_fd=dir_fd, **options)
        if not there and self._place(path, dir_fd):
            self._new(path, dir_fd, Node)
        elif flags & os.O_TRUNC and (node := self._known(descriptor)):
            self._add("size", node, 0)
        return descriptor

    def _write(self, real, descriptor, data):
        node = self._known(descriptor)
        offset = os.lseek(descriptor, 0, os.SEEK_CUR) if node else 0
        done = real(descriptor, data)
        if node:
            self._add("data", node, offset, bytes(memoryview(data)[:done]))
        return done

    def _pwrite(self, real, descriptor, data, offset):
        done = real(descriptor, data, offset)
        if node := self._known(descriptor):
            self._add("data", node, offset, bytes(memoryview(data)[:done]))
        return done

    def _copy_file_range(self, real, source, target, count, offset_src, offset_dst):
        done = real(source, target, count, offset_src, offset_dst)
        if node := self._known(target):
            self._add("data", node, offset_dst, os.pread(source, done, offset_src))
        return done

    def _ioctl(self, real, descriptor, request, argument):
        answer = real(descriptor, request, argument)  # the one request is FICLONE
        if node := self._known(descriptor):
            self._add("data", node, 0, os.pread(argument, os.fstat(argument).st_size, 0))
        return answer

    def _ftruncate(self, real, descriptor, size):
        real(descriptor, size)
        if node := self._known(descriptor):
            self._add("size", node, size)

    def _chmod(self, real, path, mode, **options):
        real(path, mode, **options)
        if node := self._known(path):
            self._add("mode", node, mode)

    def _rename(self, real, source, target, *, src_dir_fd=None, dst_dir_fd=None):
        before, after = self._place(source, src_dir_fd), self._place(target, dst_dir_fd)
        node = self._id(os.stat(source, dir_fd=src_dir_fd, follow_symlinks=False))
        real(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        if before and after:
            self._add("move", after[0], after[1], node, before)

    _replace = _rename

    def _unlink(self, real, path, *, dir_fd=None):
        place = self._place(path, dir_fd)
        real(path, dir_fd=dir_fd)
        if place:
            self._add("unlink", *place)

    _rmdir = _remove = _unlink

    def _fsync(self, real, descriptor):
        real(descriptor)
        if node := self._known(descriptor):
            self._add("sync", node)

    _fdatasync = _fsync

    def _syncfs(self, real, descriptor):
        answer = real(descriptor)
        self._add("sync", None)
        return answer


def survivors(recorder, effects=None, *, seeds=4):
    """Yield `(moment, choice, tree)` of what may be there after a power loss.

    A tree maps relative paths to contents (bytes), or to the mode where it is a folder. The moment
    is the number of changes and syncs that were through.
    """
    effects = recorder.effects if effects is None else effects
    secured = _secured(effects)
    for moment in range(len(effects) + 1):
        for choice in (*_CHOICES, *range(seeds)):
            decide = _CHOICES.get(choice) or _at_random(random.Random(f"{choice} {moment}"))
            fates = [
                "yes" if sure <= moment else decide(effect)
                for effect, sure in zip(effects[:moment], secured, strict=False)
            ]
            yield moment, choice, _tree(recorder, zip(effects[:moment], fates, strict=True))


def undisturbed(recorder, effects=None):
    """Return the tree that is there where all changes reach the disk."""
    effects = recorder.effects if effects is None else effects
    return _tree(recorder, ((effect, "yes") for effect in effects))


_CHOICES = {
    "nothing": lambda effect: "no",
    "everything": lambda effect: "yes",
    "names without data": lambda effect: "yes" if effect.names else "no",
    "names with zeros": lambda effect: "yes" if effect.names else "zeros",
    "data without names": lambda effect: "no" if effect.names else "yes",
    "renames only": lambda effect: "yes" if effect.kind == "move" else "no",
}


def _at_random(dice):
    return lambda effect: dice.choice(
        ("yes", "no") if effect.names else ("yes", "no", "zeros", "half")
    )


def _secured(effects):
    """Return of each effect the moment from which it is sure to survive."""
    sure, following, everything = [], {}, float("inf")
    for moment in range(len(effects), 0, -1):
        effect = effects[moment - 1]
        if effect.kind == "sync" and effect.node is None:
            everything = moment
        elif effect.kind == "sync":
            following[effect.node] = moment
        sure.append(min(everything, following.get(effect.node, float("inf"))))
    return sure[::-1]


def _tree(recorder, fates):
    """Return what is on the disk where each effect has met its fate."""
    nodes = {
        key: Node(node.mode, None if node.entries is None else dict(node.entries), node.data)
        for key, node in recorder.nodes.items()
    }
    for effect, fate in fates:
        if fate != "no":
            _APPLY[effect.kind](nodes, effect.node, *effect.details, fate=fate)
    found = {}
    _walk(nodes, recorder.top, "", found)
    return found


def _link(nodes, folder, name, node, *, fate):
    nodes[folder].entries[name] = node


def _unlink(nodes, folder, name, *, fate):
    nodes[folder].entries.pop(name, None)


def _move(nodes, folder, name, node, before, *, fate):
    nodes[before[0]].entries.pop(before[1], None)
    nodes[folder].entries[name] = node  # even where the old name never reached the disk


def _data(nodes, node, offset, data, *, fate):
    if fate == "zeros":
        data = bytes(len(data))
    elif fate == "half":
        data = data[: len(data) // 2]
    new = bytearray(nodes[node].data)  # never the recorded one
    new.extend(bytes(max(0, offset - len(new))))
    new[offset : offset + len(data)] = data
    nodes[node].data = new


def _size(nodes, node, size, *, fate):
    nodes[node].data = bytearray(nodes[node].data[:size].ljust(size, b"\0"))


def _mode(nodes, node, mode, *, fate):
    nodes[node].mode = mode


_APPLY = {
    "link": _link,
    "unlink": _unlink,
    "move": _move,
    "data": _data,
    "size": _size,
    "mode": _mode,
    "sync": lambda *_, fate: None,
}


def _walk(nodes, key, path, found):
    node = nodes[key]
    if node.entries is None:
        found[path] = node.data
        return
    found[path] = node.mode
    for name, child in node.entries.items():
        _walk(nodes, child, f"{path}/{name}" if path else name, found)
