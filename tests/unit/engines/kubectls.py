"""A kubectl for tests: it records its calls, and answers each verb from files, in their order."""

import json
from pathlib import Path

# Few processes: a test makes many calls.
_SCRIPT = """#!/bin/sh
cd '{folder}' || exit 99
number=1000
for each in calls/*.arguments; do [ -e "$each" ] && number=$((number + 1)); done
printf '%s\\n' "$@" > "calls/$number.arguments"
verb=$1
case " $* " in *" --filename=- "*) cat > "calls/$number.stdin";; esac
case " $* " in *" --dry-run=server "*) verb=trial;; esac
for each in "answers/get:${{2%%/*}}."*.out; do
    if [ "$verb" = get ] && [ -e "$each" ]; then verb="get:${{2%%/*}}"; fi
done
answer= more=
for each in "answers/$verb."*.out; do
    if [ -z "$answer" ]; then answer=${{each%.out}}; else more=1; fi
done
[ -e "$answer.out" ] || {{ echo "error: nobody told what $verb answers" >&2; exit 97; }}
cat "$answer.out"
[ -s "$answer.err" ] && cat "$answer.err" >&2
read -r code < "$answer.code"
# The last answer is that to all further calls.
[ -n "$more" ] && rm "$answer.out"
exit "$code"
"""


class FakeKubectl:
    """An executable in a folder of its own, which goes on PATH."""

    def __init__(self, folder: Path):
        self.folder = folder
        for each in ("bin", "calls", "answers"):
            (folder / each).mkdir(parents=True)
        script = folder / "bin" / "kubectl"
        script.write_text(_SCRIPT.format(folder=folder))
        script.chmod(0o755)
        self._told = 1000

    def says(self, verb, out="", *, err="", code=0):
        """Add an answer to a verb; the last is given again and again.

        `trial` is a dry run, `get:pods` what is asked about pods.
        """
        self._told += 1
        text = out if isinstance(out, str) else json.dumps(out)
        for name, content in (("err", err), ("code", f"{code}\n"), ("out", text)):
            (self.folder / "answers" / f"{verb}.{self._told}.{name}").write_text(content)

    def forget(self):
        """Forget all answers and calls."""
        for each in (*self.folder.glob("answers/*"), *self.folder.glob("calls/*")):
            each.unlink()

    @property
    def calls(self):
        """The arguments of each call."""
        found = sorted(self.folder.glob("calls/*.arguments"))
        return [each.read_text().splitlines() for each in found]

    def told(self, number=-1):
        """Return the objects that a call was given on its standard input."""
        found = sorted(self.folder.glob("calls/*.stdin"))
        return objects(found[number].read_text())


def objects(text):
    """Return the objects in what kubectl reads."""
    return [json.loads(each) for each in text.split("---\n")[1:]]
