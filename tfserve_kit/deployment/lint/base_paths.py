"""Rules about what lies in the base paths, and under which names.

Source: tensorflow_serving/sources/storage_path/file_system_storage_path_source.cc, where no other
is named.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tfserve_kit import redaction
from tfserve_kit.deployment.lint.facts import Facts
from tfserve_kit.deployment.lint.findings import Rule, Severity
from tfserve_kit.errors import Problem
from tfserve_kit.repository import parse_version
from tfserve_kit.repository.surroundings import like_a_version, look_around, renamed
from tfserve_kit.savedmodel import GRAPH_FILE


def _base_path_unreadable(facts: Facts) -> Iterator[Problem]:
    """No port opens before every model has a version; until then the look is only repeated.

    Later on, one base path that is missing keeps the server from seeing new versions of any model.
    """
    for name, error in facts.unreadable.items():
        path = facts.spec.models[name].base_path
        remedy = f"tfkit push-model SAVED_MODEL --to {path}"
        if isinstance(error, NotADirectoryError):
            remedy = "give the folder that holds one folder per version"
        elif isinstance(error, PermissionError):
            remedy = "let the server's user read and enter it"
        text = f"{path} cannot be read ({error.strerror})"
        found = look_around(Path(path))
        if found and isinstance(error, NotADirectoryError):
            text, remedy = f"{text}: it {found.what}", found.serve
        elif found:
            remedy = f"{found.serve} or {remedy}"
        yield Problem(f"models.{name}.base_path", text, remedy)


def _no_version(facts: Facts) -> Iterator[Problem]:
    """Like a missing base path, an empty one is waited for."""
    for base in facts.bases:
        path = base.model.base_path
        if base.versions:
            continue
        text, remedy = f"{path} holds no version", f"tfkit push-model SAVED_MODEL --to {path}"
        if found := look_around(Path(path)):
            text, remedy = f"{text}: it {found.what}", found.serve
        yield Problem(f"{base.place}.base_path", text, remedy)


def _version_not_on_disk(facts: Facts) -> Iterator[Problem]:
    """Only a warning in the log, as long as one of them is there; else it is waited for."""
    for base in facts.bases:
        for number in sorted(set(base.model.versions.specific) - set(base.numbers)):
            if base.versions:  # else there is a finding already
                text = f"version {number} is not in {base.model.base_path}"
                yield Problem(f"{base.place}.versions", text, f"it holds {base.numbers}")


def _name_is_no_version(facts: Facts) -> Iterator[Problem]:
    """Whatever absl::SimpleAtoi does not take for an int64 is passed over without a word."""
    for base in facts.bases:
        meant = [child for child in base.children if like_a_version(child)]
        if meant:
            names = ", ".join(repr(child.name) for child in meant)
            text = f"{names} in {base.model.base_path} will never be loaded"
            command = renamed(meant[0], frozenset(child.name for child in base.children))
            remedy = f"name versions with whole numbers below 2^63, such as 1: {command}"
            yield Problem(f"{base.place}.base_path", text, remedy)


def _odd_version_name(facts: Facts) -> Iterator[Problem]:
    """Signs, blanks and leading zeros count; REST cannot name a version below zero."""
    for base in facts.bases:
        for version in base.versions:
            name, number = version.path.name, version.number
            if name != str(number) or number < 0:
                remedy = f"name it {number}" if number >= 0 else "use 1 or more: REST knows no sign"
                text = f"{name!r} in {base.model.base_path} counts as version {number}"
                yield Problem(f"{base.place}.base_path", text, remedy)


def _two_spellings(facts: Facts) -> Iterator[Problem]:
    """Of two names for one number the lexicographically last is used."""
    for base in facts.bases:
        spellings = defaultdict(list)
        for child in base.children:
            if (number := parse_version(child.name)) is not None:
                spellings[number].append(child.name)
        for number, (*others, used) in spellings.items():
            if others:
                unused = ", ".join(map(repr, others))
                text = f"version {number} is {used!r}; {unused} is passed over"
                yield Problem(f"{base.place}.base_path", text, "remove or renumber all but one")


def _version_is_no_folder(facts: Facts) -> Iterator[Problem]:
    """Whatever has an integer name counts, folder or not; its load fails, the old one stays."""
    for base in facts.bases:
        for version in base.versions:
            if version.path.is_dir() or version in base.fatal:
                continue
            text = f"{version.path} counts as version {version.number}, but is no folder"
            yield Problem(f"{base.place}.base_path", text, "remove or rename it")


def _s3_base_path(facts: Facts) -> Iterator[Problem]:
    """S3 left TensorFlow for the tensorflow-io package with 2.7; a C++ server cannot load it."""
    for name, path in facts.remote.items():
        if path.lower().startswith("s3:"):
            text = f"{redaction.url(path)}: the server cannot read s3:// (since 2.7)"
            remedy = "copy the versions to a local folder, and serve that"
            yield Problem(f"models.{name}.base_path", text, remedy)


def _remote_base_path(facts: Facts) -> Iterator[Problem]:
    """Only the server itself can look there."""
    for name, path in facts.remote.items():
        if not path.lower().startswith("s3:"):
            text = f"{redaction.url(path)} was not looked at: only the server can"
            remedy = f"see that it holds numbered versions; upload {GRAPH_FILE} last"
            yield Problem(f"models.{name}.base_path", text, remedy)


_E, _W, _I = Severity.ERROR, Severity.WARNING, Severity.INFO

RULES = (
    Rule("base-path-unreadable", _E,
         "a base path cannot be read: no port opens, the server waits without end",
         _base_path_unreadable),
    Rule("no-version", _E,
         "a base path holds no version: no port opens, the server waits without end",
         _no_version),
    Rule("version-not-on-disk", _E,
         "a version of `specific` is not there: the server goes without it, or waits without end",
         _version_not_on_disk),
    Rule("s3-base-path", _E,
         "the server cannot read s3:// since 2.7",
         _s3_base_path),
    Rule("name-is-no-version", _W,
         "a folder looks like a version, but its name is no integer: it is passed over in silence",
         _name_is_no_version),
    Rule("odd-version-name", _W,
         "a name such as `0001` or `+1` counts as a version, though it does not look like it",
         _odd_version_name),
    Rule("two-spellings", _W,
         "two names stand for one version number: only one of them is served",
         _two_spellings),
    Rule("version-is-no-folder", _W,
         "a file with an integer name counts as a version: loading it fails",
         _version_is_no_folder),
    Rule("remote-base-path", _I,
         "a base path such as gs:// can only be looked at by the server",
         _remote_base_path),
)  # fmt: skip
