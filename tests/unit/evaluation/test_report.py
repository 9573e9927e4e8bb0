"""A run as numbers, text, data and page; names of files and classes are hostile."""

import base64
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.unit.evaluation.made import answer, outcome, rows_set
from tfserve_kit.clients import Target
from tfserve_kit.evaluation.examples import Failure, as_png
from tfserve_kit.evaluation.report import (
    as_data,
    as_text,
    build,
    missed_gates,
    page,
    percent,
    thumbnails,
)
from tfserve_kit.evaluation.run import Evaluation
from tfserve_kit.pictures.preprocessing import Preprocessing

ANSWERS = [
    answer(0, 0, 0, 0.9),
    answer(1, 1, 1, 0.8),
    answer(2, 1, 0, 0.7, rank=2),
    answer(3, 2, 0, 0.95, rank=1),
]


def report(*outcomes, unusable=(), top_k=2, source="set"):
    made = list(outcomes) or [outcome(ANSWERS)]
    return build(Evaluation(source, 5, list(unusable), made), top_k)


class TestNumbers:
    def test_summary(self):
        (found,) = report().summaries
        assert (found.answered, found.wrong, found.error_rate) == (4, 2, 0.5)
        assert found.top_k_error_rate == 0.25
        assert found.matrix == [[1, 0, 0], [1, 1, 0], [1, 0, 0]]
        assert [each.index for each in found.worst] == [3, 2]
        assert found.class_names == ("0", "1", "2")
        assert found.title == "version 1"

    def test_logits_have_no_calibration(self):
        assert report().summaries[0].calibration is not None
        assert report(outcome(ANSWERS, probabilities=False)).summaries[0].calibration is None

    def test_matrix_is_left_out_for_many_classes(self):
        assert report(outcome(ANSWERS, classes=41)).summaries[0].matrix is None
        assert report(outcome(ANSWERS, classes=40)).summaries[0].matrix is not None

    def test_only_examples_that_both_answered_are_compared(self):
        second = [answer(1, 1, 0), answer(2, 1, 1), answer(3, 2, 2), answer(4, 2, 2)]
        found = report(outcome(ANSWERS), outcome(second, version=2, versions=(2,))).comparison
        assert (found.examples, found.only_first_right, found.only_second_right) == (3, 1, 2)

    def test_nothing_in_common_is_not_compared(self):
        second = outcome([answer(9, 1, 1)], version=2, versions=(2,))
        assert report(outcome(ANSWERS), second).comparison is None


class TestGates:
    BETTER = outcome(ANSWERS[:1] + [answer(i, 1, 1) for i in (1, 2, 3)], version=2, versions=(2,))

    @pytest.mark.parametrize(("limit", "misses"), [(None, 0), (0.5, 0), (0.49, 1), (0.0, 1)])
    def test_error_rate(self, limit, misses):
        assert len(missed_gates(report(), limit, None)) == misses

    def test_error_rate_is_that_of_the_second(self):
        assert missed_gates(report(outcome(ANSWERS), self.BETTER), 0.1, None) == []
        (missed,) = missed_gates(report(self.BETTER, outcome(ANSWERS)), 0.1, None)
        assert missed == "the error rate of version 1, 50%, is above 10%"

    @pytest.mark.parametrize(("limit", "misses"), [(None, 0), (0.5, 0), (0.4, 1), (0.0, 1)])
    def test_worse_by(self, limit, misses):
        assert len(missed_gates(report(self.BETTER, outcome(ANSWERS)), None, limit)) == misses
        assert missed_gates(report(outcome(ANSWERS), self.BETTER), None, limit) == []

    def test_what_cannot_be_compared_does_not_pass(self):
        apart = outcome([answer(9, 1, 1)], version=2, versions=(2,))
        (missed,) = missed_gates(report(outcome(ANSWERS), apart), None, 1.0)
        assert "cannot be compared" in missed


class TestText:
    @pytest.mark.parametrize(
        ("share", "text"),
        [(0.105, "10.5%"), (0, "0%"), (1, "100%"), (0.1, "10%"), (1 / 3, "33.33%"),
         (0.0001, "0.01%"), (-0.0241, "-2.41%")],
    )  # fmt: skip
    def test_percent_has_as_many_decimals_as_it_needs(self, share, text):
        assert percent(share) == text

    def test_error_rate_has_a_line_of_its_own(self):
        lines = as_text(report()).splitlines()
        assert lines[0] == "m version 1, 4 examples of set"
        assert "Inference error rate: 50%" in lines
        assert "2 of 4 wrong, 95% interval 15% to 85%" in lines
        assert "Top-2 error rate: 25%" in lines

    @pytest.mark.parametrize(("top_k", "is_told"), [(2, True), (3, False), (5, False)])
    def test_top_k_is_told_where_it_leaves_a_class_out(self, top_k, is_told):
        assert ("Top-" in as_text(report(top_k=top_k))) is is_told

    @pytest.mark.parametrize("with_assumed", [True, False])
    def test_what_was_assumed_is_told_unless_it_was_told_before(self, with_assumed):
        run = Evaluation(
            "set", 5, [], [outcome(ANSWERS)], ("channels RGB (change: --channel-order)",)
        )
        text = as_text(build(run, 2), with_assumed=with_assumed)
        assert ("\n\nAssumed:\n  channels RGB (" in text) is with_assumed

    def test_mistakes_are_told_as_what_was_taken_for_what(self):
        text = as_text(report())
        assert "Most often mistaken: 1 as 0 (1), 2 as 0 (1)" in text
        assert "   0.9500  2 as 0  3.png" in text

    @pytest.mark.parametrize(("right", "is_told"), [(1, True), (3, False)])
    def test_one_class_for_nearly_all_is_told_unless_nearly_all_are_of_it(self, right, is_told):
        kept = [answer(i, 0, 0) for i in range(right)]
        text = as_text(report(outcome([*kept, answer(8, 1, 0), answer(9, 2, 0)])))
        told = f"Note: {right + 2} of {right + 2} are taken for one class (0). If you expected"
        assert (told in text) is is_told

    def test_failures_bad_examples_and_a_swap_are_told(self):
        bad = [Failure(8, "x.png", "is not a picture")]
        text = as_text(report(outcome(ANSWERS, failures=7, versions=(1, 2)), unusable=bad))
        assert "7 requests failed:\n  lost0.png: ServerFault: it broke" in text
        assert "and 2 more" in text
        assert "The version changed during the run: version 1 (version 1, version 2)" in text
        assert "1 example could not be used:\n  x.png: is not a picture" in text

    def test_comparison_says_what_was_found(self):
        right = [answer(i, 1, 1) for i in range(8)]
        wrong = [answer(i, 1, 0) for i in range(8)]
        text = as_text(report(outcome(right), outcome(wrong, version=2, versions=(2,))))
        assert "version 2 against version 1: worse" in text
        assert "Error rate higher by 100 points" in text
        assert "p = 0.00781" in text

    def test_names_cannot_forge_lines_or_steer_the_terminal(self):
        name = "a\x1b[2J\nInference error rate: 0%"
        about = outcome([answer(0, 0, 1, name=name)], labels=("a\nb", "\x9b1m", "c"))
        text = as_text(report(about))
        assert not any(c in text for c in "\x1b\x9b")
        assert text.splitlines().count("Inference error rate: 0%") == 0


def test_data_is_valid_json_with_everything():
    found = report(outcome(ANSWERS, failures=1), outcome(ANSWERS, version=2, versions=(2,)))
    data = json.loads(json.dumps(as_data(found), allow_nan=False))
    assert data["comparison"]["verdict"] == "no difference found"
    first, second = data["results"]
    assert (first["error_rate"], first["versions"], second["name"]) == (0.5, [1], "version 2")
    assert first["classes"][2] == {"index": 2, "support": 1, "taken": 0, "precision": None,
                                   "recall": 0.0, "f1": 0.0, "label": "2"}  # fmt: skip
    assert first["failures"][0]["name"] == "lost0.png"


VOID = {"meta", "img", "br", "path"}


class Reader(HTMLParser):
    """Reads a page; collects its tags, attributes and texts, and checks that tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self._open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


HOSTILE = ("<script>alert(1)</script>", '" onmouseover="alert(2)', "</style><img src=x>")


class TestPage:
    def test_what_was_measured_is_on_it(self):
        found = Reader(page(report(), {3: as_png(np.zeros((2, 2), np.uint8))}))
        text = " ".join(" ".join(found.texts).split())
        assert "50%" in text and "15% to 85%" in text and "top-2 error rate" in text
        assert "2 taken for 0 score 0.9500 3.png" in text
        (source,) = [value for tag, name, value in found.attributes if name == "src"]
        picture = base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True)
        assert Image.open(io.BytesIO(picture)).size == (2, 2)
        assert found.tags.count("img") == 1 and "no picture" in text
        assert found.tags.count("rect") == len(
            [each for each in report().summaries[0].calibration.bins if each.count]
        )

    def test_names_are_text_whatever_they_hold(self):
        answers = [answer(i, i, (i + 1) % 3, name=name) for i, name in enumerate(HOSTILE)]
        failures = [Failure(i, name, name) for i, name in enumerate(HOSTILE)]
        made = outcome(answers, labels=HOSTILE)
        made.failures = failures
        made.subject = replace(made.subject, name=HOSTILE[0], target=Target(HOSTILE[0]))
        text = page(report(made, made, unusable=failures, source=HOSTILE[0]), {})
        found = Reader(text)
        assert not {"script", "img", "iframe", "link", "object"} & set(found.tags)
        assert found.tags.count("style") == 1
        assert not [name for _, name, _ in found.attributes if name.startswith("on")]
        assert HOSTILE[0] in found.texts

    def test_it_needs_nothing_from_elsewhere(self):
        text = page(report(), {3: b"png"})
        assert not re.search(r"https?://|url\(|@import|<script|<link", text)
        policy = [value for _, name, value in Reader(text).attributes if name == "content"]
        assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in policy

    def test_comparison_has_both(self):
        text = page(report(outcome(ANSWERS), outcome(ANSWERS, version=2, versions=(2,))), {})
        headings = re.findall(r"<h2>(.*)</h2>", text)
        assert headings == [
            "version 2 against version 1: no difference found", "version 1", "version 2"
        ]  # fmt: skip

    def test_many_classes_show_the_worst_and_the_most_confused(self):
        answers = [answer(i, i, i if i % 9 else 0) for i in range(60)]
        text = page(report(outcome(answers, classes=60)), {})
        assert 'class="matrix' not in text
        assert "What was most often taken for what" in text
        assert "Of 60 classes, those with the lowest F1." in text
        assert text.index('title="9"') < text.index('title="1"')

    def test_few_examples_and_no_mistakes_make_a_page(self):
        found = Reader(page(report(outcome([answer(0, 0, 0)])), {}))
        assert "Mistakes with the highest scores" not in found.texts

    def test_pictures_of_the_worst_mistakes_are_read_again(self):
        pixels = [np.full((2, 3), i, np.uint8) for i in range(4)]
        labelled = rows_set([0, 1, 1, 2], lambda: iter(pixels))
        found = thumbnails(report(), labelled, Preprocessing())
        assert sorted(found) == [2, 3]
        assert np.asarray(Image.open(io.BytesIO(found[3]))).tolist() == [[3] * 3] * 2


class TestInABrowser:
    """What Chromium makes of the page; skipped where it is not installed."""

    @pytest.fixture
    def opened(self, require, tmp_path):
        """Open a page in a window of some width: its document after that."""
        browser = shutil.which("chromium") or shutil.which("google-chrome")
        if browser is None:
            require("chromium", "no chromium on this machine")

        def open_page(text, width=800):
            file = tmp_path / "page.html"
            file.write_text(text, "utf-8")
            flags = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/b")
            done = subprocess.run(
                [browser, *flags, f"--window-size={width},900", "--dump-dom", file.as_uri()],
                capture_output=True,
                timeout=120,
                check=True,
            )
            return done.stdout.decode("utf-8")

        return open_page

    def test_no_script_would_run_even_if_one_slipped_in(self, opened):
        evil = "<script>document.title='owned'</script>"
        text = page(report(), {}).replace("</body>", f"{evil}</body>")
        assert "<title>m: error rate 50%</title>" in opened(text)

    def test_a_phone_needs_not_be_scrolled_sideways(self, opened):
        names = tuple(f"a rather long name of a class, {i}" for i in range(40))
        made = outcome([answer(i, i % 40, i % 37, name="dir/" * 30) for i in range(400)],
                       classes=40, labels=names)  # fmt: skip
        text = page(report(made, source="a" * 300), {})
        policy = re.search(r"<meta http-equiv=.*>", text)[0]
        width = "<script>document.title = document.documentElement.scrollWidth</script></body>"
        shown = opened(text.replace(policy, "").replace("</body>", width), width=500)
        assert int(re.search(r"<title>(\d+)</title>", shown)[1]) <= 500
