"""Pushing through commands that run a shell: everywhere or nowhere, whatever happens on the way."""

import itertools
import os
import random
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from tfserve_kit.errors import PushRefused, ServerFailed
from tfserve_kit.repository import Gate, push
from tfserve_kit.repository.manifest import verify
from tfserve_kit.repository.push import Waves, push_to_places
from tfserve_kit.repository.shells import Place

TOOLS = ["sh", "tar", "mv", "sync", "ls", "cat", "mkdir", "rm", "rmdir", "find", "wc", "grep"]
KILLS = 200 if "TFKIT_TORTURE" in os.environ else 10


@pytest.fixture
def source(models, tmp_path):
    return shutil.copytree(models / "half_plus_two" / "1", tmp_path / "source")


@pytest.fixture
def command(tmp_path):
    """Make a command of a script that runs its arguments, in one way or another."""

    def make(script, name="via"):
        file = tmp_path / name
        file.write_text(script if script.startswith("#!") else f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        return str(file)

    return make


@pytest.fixture
def places(tmp_path):
    return [Place("env", str(tmp_path / "far" / name)) for name in "abc"]


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in Path(folder).rglob("*")
        if not path.name.endswith("manifest.json")
    }


def refusal(*arguments, kind=PushRefused, **options):
    with pytest.raises(kind) as caught:
        push_to_places(*arguments, **options)
    return str(caught.value)


def holds(place):
    """Return the visible and the hidden names of a place, each complete where it is a version."""
    base = Path(place.base_path)
    names = sorted(each.name for each in base.iterdir()) if base.exists() else []
    for name in names:
        if name.isdecimal():
            manifest, problems = verify(base / name)
            assert manifest and not problems
    return names


@pytest.mark.parametrize(
    "script",
    [
        pytest.param('exec "$@"', id="words-as-they-are"),
        pytest.param('exec sh -c "$*"', id="parsed-once-more"),
    ],
)
def test_version_is_as_if_it_had_been_pushed_here(source, command, tmp_path, script):
    (source / "assets" / "empty").mkdir(parents=True)
    (source / "assets" / "two words 'n' $HOME `x` *").write_text("as they are")
    here = push(source, tmp_path / "here")
    place = Place(command(script), str(tmp_path / "it's far" / "$HOME *"))
    pushed = push_to_places(source, [place])[place]
    assert (pushed.version, pushed.size_bytes) == (1, here.size_bytes)
    assert tree(pushed.path) == tree(here.path)
    assert holds(place) == ["1"]
    assert Path(pushed.path).stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("has_checksums", [True, False])
@pytest.mark.parametrize("box", ["busybox", ""])
def test_few_tools_are_enough(source, tmp_path, box, has_checksums):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in TOOLS + ["sha256sum"] * has_checksums:
        if not (found := shutil.which(box or name)):
            pytest.skip(f"no {box or name}")
        (tools / name).symlink_to(found)
    place = Place(f"env PATH={tools}", str(tmp_path / "far"))
    for number in (1, 2):
        assert push_to_places(source, [place])[place].version == number
    assert holds(place) == ["1", "2"]


@pytest.mark.parametrize(
    ("at", "has_checksums"),
    [
        *itertools.product([0, 3000, 9000, -12_000], [True, False]),
        (700, True),  # in the checksums themselves
    ],
)
@pytest.mark.parametrize("harm", ["flip", "end"])
def test_harm_on_the_way_is_noticed(source, command, tmp_path, has_checksums, at, harm):
    script = f"""
        import subprocess, sys
        words = sys.argv[1:]
        if "stage" in words:
            data = bytearray(sys.stdin.buffer.read())
            data[{at}] ^= 0x01
            if {harm == "end"}:
                del data[{at}:]
            if not {has_checksums}:
                words[2] = words[2].replace("sha256sum >", "no-such-sum >")
            sys.exit(subprocess.run(words, input=data).returncode)
        sys.exit(subprocess.run(words).returncode)
    """
    place = Place(command(f"#!{sys.executable}{textwrap.dedent(script)}"), str(tmp_path / "far"))
    text = refusal(source, [place])
    assert "far" in text
    assert holds(place) == []


def test_number_is_above_what_any_place_holds_or_has_retired(source, places):
    for place, names in zip(places, (["7"], ["0012", "notes"], [".tfkit-retired-20"]), strict=True):
        for name in names:
            (Path(place.base_path) / name).mkdir(parents=True)
    assert {each.version for each in push_to_places(source, places).values()} == {21}
    assert "20 already exists" in refusal(source, places, version=20)


def test_callers_of_every_place_are_kept(source, models, places):
    shutil.copytree(models / "multi_io" / "1", Path(places[1].base_path) / "1")
    shutil.copytree(source, Path(places[0].base_path) / "1")
    before = [holds_names(place) for place in places]
    assert "refused" in refusal(source, places)
    assert [holds_names(place) for place in places] == before
    push_to_places(source, places, gate=Gate(allow_breaking=True))


def holds_names(place):
    base = Path(place.base_path)
    names = [each.name for each in base.iterdir()] if base.exists() else []
    return sorted(name for name in names if not name.startswith(".tfkit-staging-"))


def test_one_place_without_room_leaves_all_as_they_were(source, places, command):
    (source / "assets").mkdir()
    (source / "assets" / "large").write_bytes(bytes(1 << 20))
    small = command('[ "$5" = stage ] && ulimit -f 100; exec "$@"')
    places[1] = Place(small, places[1].base_path)
    assert "no place has changed" in refusal(source, places)
    assert [holds(place) for place in places] == [[], [], []]


def test_place_that_goes_between_copying_and_publishing(source, places, command, tmp_path):
    gone = command(f'[ -e {tmp_path}/gone ] && {{ echo "no route" >&2; exit 255; }}; exec "$@"')
    places[1] = Place(gone, places[1].base_path)

    def deliver(place, publish):
        publish()
        (tmp_path / "gone").touch()

    text = refusal(source, places, waves=Waves(deliver=deliver))
    assert "may be visible or not" in text and "no route" in text
    assert f"version 1 was retired again in {places[0]}" in text
    assert holds(places[0]) == [".tfkit-retired-1"]
    assert [name[:15] for name in holds(places[1])] == [".tfkit-staging-"]  # nobody could remove it
    (tmp_path / "gone").unlink()
    assert {each.version for each in push_to_places(source, places).values()} == {2}


def test_answer_that_is_lost_is_looked_up(source, places, command):
    deaf = command('case " $* " in *" publish "*) "$@"; exit 255 ;; esac; exec "$@"')
    places[1] = Place(deaf, places[1].base_path)
    push_to_places(source, places)
    assert [holds(place) for place in places] == [["1"]] * 3


def test_shell_that_is_killed_between_the_rename_and_the_end_has_published(
    source, places, command, tmp_path
):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "rm").write_text("#!/bin/sh\nkill -9 $PPID\n")
    (tools / "rm").chmod(0o755)
    killed = command(f'case " $* " in *" publish "*) PATH="{tools}:$PATH" ;; esac; exec "$@"')
    places[1] = Place(killed, places[1].base_path)
    push_to_places(source, places)
    assert [holds(place) for place in places] == [["1"]] * 3


def test_version_that_does_not_serve_is_taken_back_and_goes_no_further(source, places):
    def deliver(place, publish):
        publish()
        if place is places[1]:
            raise ServerFailed("it does not load", remedy="look at its log")

    text = refusal(source, places, waves=Waves(deliver=deliver), kind=ServerFailed)
    assert text.startswith("it does not load; version 1 was retired again in ")
    assert [holds(place) for place in places] == [[".tfkit-retired-1"], [".tfkit-retired-1"], []]


def test_waves_are_of_their_size_and_each_waits_for_the_one_before(source, places):
    together = threading.Barrier(2, timeout=20)
    seen = []

    def deliver(place, publish):
        publish()
        if place is not places[2]:
            together.wait()
        seen.append([len(holds_names(each)) for each in places])

    push_to_places(source, places, waves=Waves(2, deliver))
    assert seen == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]


def test_number_that_somebody_takes_meanwhile_is_left_to_them(source, places):
    def deliver(place, publish):
        (Path(places[1].base_path) / "1").mkdir(parents=True, exist_ok=True)
        publish()

    assert "1 is there already" in refusal(source, places, waves=Waves(deliver=deliver))
    assert [holds_names(place) for place in places] == [[".tfkit-retired-1"], ["1"], []]


def test_two_ways_to_one_folder_are_refused(source, places):
    again = Place("env -- env", places[1].base_path)
    assert "are the same folder" in refusal(source, [*places, again])
    assert [holds(place) for place in places] == [[], [], []]


@pytest.mark.parametrize(
    ("via", "text"),
    [
        ("ssh 'a", "No closing quotation"),
        ("", "--via is empty"),
        ("no-such-command-here x", "cannot run 'no-such-command-here': No such file"),
        ("false", "runs no shell: it ended with status 1"),
        ("sh -c 'echo host unknown >&2; exit 255'", "runs no shell: host unknown"),
    ],
)
def test_command_that_leads_nowhere_is_named(source, tmp_path, via, text):
    with pytest.raises(PushRefused, match=text):
        push_to_places(source, [Place(via, str(tmp_path / "far"))])


def test_base_path_that_is_a_file_is_refused(source, places):
    Path(places[0].base_path).parent.mkdir()
    Path(places[0].base_path).write_text("mine")
    assert "cannot read" in refusal(source, places)
    assert Path(places[0].base_path).read_text() == "mine"


PUSHER = """
import sys
from tfserve_kit.repository.push import push_to_places
from tfserve_kit.repository.shells import Place
source, *folders = sys.argv[1:]
push_to_places(source, [Place("env", each) for each in folders])
print("pushed")
"""


@pytest.mark.slow
def test_pushes_killed_at_any_moment_leave_all_or_nothing(source, places):
    (source / "assets").mkdir()
    (source / "assets" / "large").write_bytes(random.Random(1).randbytes(4 << 20))
    folders = [place.base_path for place in places]
    line = [sys.executable, "-c", PUSHER, str(source), *folders]
    subprocess.run(line, check=True, capture_output=True)
    began_s = time.monotonic()
    subprocess.run(line, check=True, capture_output=True)
    whole_s = time.monotonic() - began_s
    for seed in range(KILLS):
        pusher = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(random.Random(seed).uniform(0.3, 1.0) * whole_s)
        pusher.kill()
        pusher.wait()
        for place in places:
            holds(place)  # which looks at each visible version
    time.sleep(1)  # what was told to copy ends over there
    numbers = {each.version for each in push_to_places(source, places).values()}
    assert len(numbers) == 1
    for place in places:
        names = holds(place)
        assert str(*numbers) in names
        assert not [name for name in names if name.startswith(".tfkit-staging-")]
