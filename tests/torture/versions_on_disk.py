"""What a base path may look like, whatever happened to those who write to it."""

import shutil
from pathlib import Path

from tfserve_kit import savedmodel
from tfserve_kit.repository import list_versions
from tfserve_kit.repository.manifest import Manifest, differences

HALF_PLUS_TWO = Path(__file__).parents[1] / "data" / "models" / "half_plus_two" / "1"
LARGE_BYTES = 1 << 20  # more than is copied with one read and one write


def tree(folder):
    """Return everything below a folder: relative path to content, None for folders."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def make_model(folder, *, small_files=4):
    """Make a SavedModel with folders, small files and a large one; return its path."""
    shutil.copytree(HALF_PLUS_TWO, folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (folder / "assets" / "deep").mkdir(parents=True)
    for number in range(small_files):
        (folder / "assets" / "deep" / f"{number}.txt").write_bytes(b"%d" % number * 300)
    (folder / "assets" / "large.bin").write_bytes(bytes(range(256)) * (LARGE_BYTES // 256) + b"end")
    return folder


def violations(base_path, *, older=None):
    """Return what is wrong with the versions that a server would see.

    Args:
        base_path: where they are.
        older: what those that were there before must hold: version number to its tree.
    """
    found = []
    versions = list_versions(base_path) if base_path.exists() else []
    for version in versions:
        if older and version.number in older:
            if tree(version.path) != older[version.number]:
                found.append(f"{version.path.name} was changed")
        else:
            found += [f"{version.path.name}: {each}" for each in incomplete(version.path)]
    gone = set(older or ()) - {version.number for version in versions}
    return found + [f"{number} is gone" for number in sorted(gone)]


def incomplete(version_dir):
    """Return in what a version is not as it was pushed."""
    try:
        manifest = Manifest.read(version_dir)
    except (OSError, ValueError) as error:
        return [f"manifest: {error}"]
    if manifest is None:
        return ["has no manifest"]
    found = [*differences(version_dir, manifest), *savedmodel.problems(version_dir)]
    if version_dir.stat().st_mode & 0o755 != 0o755:
        found.append("cannot be read by a server of another user")
    return list(map(str, found))


def left_overs(base_path):
    """Return the names that pushes use for their own, and leave no more."""
    names = [path.name for path in base_path.iterdir()] if base_path.exists() else []
    return [name for name in names if name.startswith(".tfkit-") and "retired" not in name]
