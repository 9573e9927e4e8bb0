"""Whether names are as many as the classes of a model, and what proves a class more or fewer."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfserve_kit.errors import UsageError
from tfserve_kit.pictures.labels import Labels, parse, read


def test_as_many_as_classes_are_taken_as_they_are():
    labels = Labels(("background", "cat"))
    assert labels.fit(2) is labels
    assert not labels.fit(2).remarks


@pytest.mark.parametrize(
    "first", ["background", "Background", "__background__", "dummy", "unknown", "???", "label"]
)
def test_a_first_line_too_many_that_names_no_class_is_left_out_and_told(first):
    found = parse(f"{first}\ncat\ndog\n", "f").fit(2)
    assert found == ("cat", "dog")
    assert found.remarks == (
        f"f: the first label, {first!r}, is left out: there is one label more than classes "
        "(change: give as many labels as classes)",
    )


def test_aliases_follow_their_names():
    text = '{"0": ["n0", "background"], "1": ["n1", "cat"], "2": ["n2", "dog"]}'
    assert parse(text, "f").fit(2).aliases == {"n1": 0, "n2": 1}


def test_ids_from_one_that_are_as_many_as_the_classes_are_shifted_and_told():
    found = parse("1: cat\n2: dog\n", "f").fit(2)
    assert found == ("cat", "dog")
    assert found.remarks == ("f counts from 1: class 0 is 'cat' (change: number its names from 0)",)


def test_ids_from_one_leave_class_0_to_the_background():
    found = parse("item { id: 1 name: 'n1' display_name: 'cat' }", "f").fit(2)
    assert found == ("background", "cat")
    assert found.aliases == {"n1": 1}
    assert "class 0, which it does not name, is background" in found.remarks[0]


@pytest.mark.parametrize(
    ("text", "classes", "said", "remedy"),
    [
        ("a\nb\nc\n", 2, "f: 3 labels for a model with 2 classes; the first label is 'a', the last "
         "'c'", "one label for each class"),
        ("a\nb\n", 3, "2 labels for a model with 3 classes", "add 'background' as the first line"),
        ("a\n", 2, "1 labels for a model with 2 classes", "name both classes, first the one"),
        ("a\n\nb\n\n\n", 2, "; line 2 blank", "delete the blank lines"),
        ("1 a\n2 b\n", 4, "2 labels for a model with 4 classes", "one label"),
        ("1 a\n2 b\n", 1, "2 labels for a model with 1 classes", "one label"),
        ("0 cat\n1 a\n2 b\n", 2, "3 labels", "one label"),
    ],
)  # fmt: skip
def test_other_counts_are_refused_with_file_number_and_ends(text, classes, said, remedy):
    with pytest.raises(UsageError) as caught:
        parse(text, "f").fit(classes)
    assert said in caught.value.message
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(("text", "names"), [("1 a\n2 b\n", [None, "a", "b", None]),
                                             ("a\nb\n", ["a", "b", None, None])])  # fmt: skip
def test_a_class_by_its_number_has_the_name_that_the_file_gives_it(text, names):
    found = parse(text, "f")
    assert [found.by_id(index) for index in range(4)] == names
    assert found.by_id(-1) is None


def test_one_name_for_one_column_is_that_of_the_second_class_and_told():
    found = parse("cat\n", "f").fit(2, is_one_column=True)
    assert found == ("not cat", "cat")
    assert found.remarks == (
        "f: class 1 is 'cat', class 0 is everything else (change: name both classes in it, that of "
        "class 0 first)",
    )
    assert parse("a\nb\n", "f").fit(2, is_one_column=True) == ("a", "b")


COLOURS = ("rot", "grün", "blau")

ZERO_BASED = {
    "lines": "rot\ngrün\nblau\n",
    "carriage returns alone": "rot\rgrün\rblau",
    "quoted lines": '"rot",\n"grün",\n"blau"\n',
    "spaces around": " rot \n\tgrün\nblau  \n\n",
    "numbered": "0 rot\n1 grün\n2 blau\n",
    "numbered, colon": "0: rot\n1: grün\n2: blau",
    "numbered, tab": "0\trot\n1\tgrün\n2\tblau",
    "numbered, bracket": "0) rot\n1) grün\n2) blau",
    "numbered, full stop": "0. rot\n1. grün\n2. blau",
    "numbered, in any order": "2 blau\n0 rot\n1 grün",
    "numbered, padded": "00 rot\n01 grün\n02 blau",
    "number last": "rot 0\ngrün 1\nblau 2",
    "rows": "0,rot\n1,grün\n2,blau\n",
    "rows, name first": "rot,0\ngrün,1\nblau,2\n",
    "rows, semicolon": "2;blau\n0;rot\n1;grün\n",
    "rows, header": "index,name\n0,rot\n1,grün\n2,blau\n",
    "rows, header, name first": "class_name|class_id\nrot|0\ngrün|1\nblau|2",
    "rows, unknown header": "Nummer;Farbe\n0;rot\n1;grün\n2;blau",
    "rows, three columns": "index,mid,display_name\n0,/m/0,rot\n1,/m/1,grün\n2,/m/2,blau",
    "rows, header, names only": "id,name\nn01,rot\nn02,grün\nn03,blau",
    "one line": "rot, grün, blau",
    "JSON list": '["rot", "grün", "blau"]',
    "JSON list of pairs": '[["n01", "rot"], ["n02", "grün"], ["n03", "blau"]]',
    "JSON list with indices": '[[2, "blau"], [0, "rot"], [1, "grün"]]',
    "JSON objects": '[{"id": 2, "name": "blau"}, {"id": 0, "name": "rot"}, '
                    '{"id": 1, "name": "grün"}]',
    "JSON lines": '{"id": 0, "label": "rot"}\n{"id": 1, "label": "grün"}\n'
                  '{"id": 2, "label": "blau"}',
    "JSON by index": '{"0": "rot", "2": "blau", "1": "grün"}',
    "class_indices.json": '{"rot": 0, "grün": 1, "blau": 2}',
    "indices as text": '{"rot": "0", "grün": "1", "blau": "2"}',
    "imagenet_class_index.json": '{"0": ["n01", "rot"], "1": ["n02", "grün"], '
                                 '"2": ["n03", "blau"]}',
    "config.json": '{"model_type": "vit", "id2label": {"0": "rot", "1": "grün", "2": "blau"}, '
                   '"label2id": {"rot": 0, "grün": 1, "blau": 2}}',
    "a note": '{"format": 1, "labels": ["rot", "grün", "blau"]}',
    "YAML, numbered": "train: x\nnames:\n  0: rot\n  1: grün\n  2: blau\nnc: 3\n",
    "YAML, listed": "nc: 3\nnames:\n- rot\n- 'grün'\n- blau\n",
    "YAML, one line": "nc: 3\nnames: ['rot', 'grün', 'blau']\ntrain: x\n",
    "YAML, one line unquoted": "nc: 3\nnames: [rot, 'grün', blau]  # of lamps\ntrain: x\n",
    "YAML, in brackets": "names: [ 'rot', 'grün',\n         'blau' ]\n",
    "YAML, numbered in braces": "nc: 3\nnames: {0: rot, 1: grün, 2: blau}\n",
    "a YAML list": "- rot\n- grün\n- blau\n",
    "a Python dictionary": "{0: 'rot',\n 1: 'grün',\n 2: 'blau'}",
    "a Python list": "['rot', 'grün', 'blau']",
    "label map from 0": "item { id: 0 name: 'rot' } item { id: 1 name: 'grün' } "
                        "item { id: 2 name: 'blau' }",
}  # fmt: skip


def test_names_between_brackets_may_have_spaces_quotes_and_commas_in_quotes():
    text = """names: [hot dog, 'it''s', "a, b", 5 o'clock, 7]"""
    assert list(parse(text, "data.yaml")) == ["hot dog", "it's", "a, b", "5 o'clock", "7"]


@pytest.mark.parametrize("text", ["names: [a, 'b]", "names: [a,, b]", "names: {a: 1, 0: b}"])
def test_brackets_that_do_not_hold_names_are_refused(text):
    with pytest.raises(UsageError, match=r"data\.yaml"):
        parse(text, "data.yaml")


@pytest.mark.parametrize("text", ZERO_BASED.values(), ids=ZERO_BASED)
def test_form_is_known_by_its_content(text):
    found = parse(text, "labels")
    assert found == COLOURS
    assert found.fit(3) == COLOURS


def test_synsets_with_numbers_have_these_as_indices():
    found = parse("n02119789 2 kit_fox\nn02100735 1 English_setter\n", "map_clsloc.txt")
    assert found == ("English_setter", "kit_fox")
    assert (found.first, found.aliases) == (1, {"n02100735": 0, "n02119789": 1})


def test_label_map_counts_from_one_and_has_comments_escapes_and_keypoints():
    text = """# written by hand
    item {
      name: "/m/01"  # the machine's { name
      id: 1
      display_name: "rot"
    }
    item: { id: 2, name: 'gr\\303\\274n' keypoints { id: 9 label: "x" } }
    item { name: "it's { \\"blau\\" }" id: 3 }
    """
    found = parse(text, "map.pbtxt")
    assert found == ("rot", "grün", 'it\'s { "blau" }')
    assert (found.first, found.aliases) == (1, {"/m/01": 0})


@pytest.mark.parametrize(
    ("text", "aliases"),
    [
        ('{"0": ["n01", "rot"], "1": ["n02", "grün"], "2": ["n03", "blau"]}',
         {"n01": 0, "n02": 1, "n03": 2}),
        ("index,mid,display_name\n1,/m/1,grün\n0,/m/0,rot\n2,/m/2,blau",
         {"/m/0": 0, "/m/1": 1, "/m/2": 2}),
        ("n01440764 rot\nn01443537 grün\nn01484850 blau",
         {"n01440764": 0, "n01443537": 1, "n01484850": 2}),
    ],
)  # fmt: skip
def test_other_names_of_a_class_are_kept(text, aliases):
    found = parse(text, "labels")
    assert (found, found.aliases) == (COLOURS, aliases)


@pytest.mark.parametrize(
    "lines",
    [
        ["1 euro", "2 euro", "5 euro"],
        ["class 1", "class 2", "class 3"],
        ["0-2", "4-6", "8-12"],
        ["2 doors", "4 wheels", "1 engine"],
        ["10 days", "30 weeks", "50 years"],
        ["0", "1", "2", "3"],
        ["7", "3", "5"],
        ["tench, Tinca tinca", "goldfish, Carassius auratus"],
        ["great white shark, white shark, man-eater", "stingray"],
        ["[UNK]", "cat"],
        ["item", "thing"],
        ["Boeing, 737", "Airbus, 320"],
        ["it's", 'a 3" nail'],
        ["#1", "#2"],
        ["a: b", "c: d"],
    ],
)
def test_what_only_looks_numbered_or_tabular_is_a_name(lines):
    assert parse("\n".join(lines) + "\n", "labels") == tuple(lines)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "it is empty"),
        (" \n\n", "it is empty"),
        ("{}", "it holds no labels"),
        ("[]", "it holds no labels"),
        ("<html><body>404</body></html>", "it is HTML or XML"),
        ('{"0": "rot",', "looks like JSON but is not"),
        ('{"0": "rot", "0": "blau"}', "the key '0' twice"),
        ('{"0": "rot", "x": "blau"}', "maps neither indices to names nor names to indices"),
        ('{"0": {"colour": 3}}', "is not a name"),
        ("[1.5, 2.5]", "1.5 is not a name"),
        ('{"0": "rot", "2": "blau"}', "from 0 to 2, and 1 is missing"),
        ('{"rot": 0, "blau": 0}', "several names have the index 0"),
        ('{"rot": -1, "blau": 0}', "the index -1, which is below 0"),
        ('{"5": "rot", "6": "blau"}', "from 5 to 6, and 1, 2, 3, 4 are missing"),
        ('{"0": "rot", "4000000000": "blau"}', "and 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and"),
        ('[{"id": 0, "name": "rot"}, {"name": "blau"}]', "'blau' has no index"),
        ('{"id2label": {"0": "rot", "1": "blau"}, "label2id": {"rot": 1, "blau": 0}}',
         "do not say the same"),
        ("0 rot\n1 grün\n3 blau", "from 0 to 3, and 2 is missing"),
        ("0,rot\n1,grün\n1,blau", "several names have the index 1"),
        ("index,name\n0,rot\n7,blau", "and 1, 2, 3, 4, 5, 6 are missing"),
        ("1,0\n0,1", "its columns 1, 2 are numbers"),
        ("item { id: 1 name: 'rot' } item { id: 2", "breaks off at 'item { id: 2'"),
        ("item { name: 'rot' }", "no name or no id"),
        ("item { id: 1 }", "no name or no id"),
        ("item { id: 1 name: 'a' } item { id: 3 name: 'b' }", "from 1 to 3, and 2 is missing"),
    ],
)  # fmt: skip
def test_what_does_not_say_which_class_has_which_name_is_refused(text, fault):
    with pytest.raises(UsageError) as caught:
        parse(text, "some.file")
    assert caught.value.message.startswith("cannot read the labels in some.file: ")
    assert fault in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    "text",
    [
        "crane\ndog\ncrane\n",
        '["crane", "dog", "crane"]',
        '{"0": "crane", "1": "dog", "2": "crane"}',
    ],
)
def test_a_name_of_several_classes_is_told(text):
    assert parse(text, "f").remarks == (
        "f: several classes have the name 'crane': 0, 2 (change: rename them in it)",
    )


def test_header_is_told():
    found = parse("index,name\n0,rot\n1,grün\n", "f.csv")
    assert found.remarks == (
        "f.csv: the first line is a header; 'index' as the index and 'name' as the name (change: "
        "give a file of lines with the names alone, in the order of the classes)",
    )


class TestEncodings:
    @pytest.mark.parametrize(
        "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-mark", "utf-32"]
    )
    def test_marks_are_known(self, tmp_path, encoding):
        file = tmp_path / "labels.txt"
        text = "\n".join(COLOURS)
        data = (
            b"\xfe\xff" + text.encode("utf-16-be")
            if encoding == "utf-16-be-mark"
            else text.encode(encoding)
        )
        file.write_bytes(data)
        assert read(file) == COLOURS

    @pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le", "utf-16-be"])
    def test_what_cannot_be_known_is_refused_and_read_if_named(self, tmp_path, encoding):
        file = tmp_path / "labels.txt"
        file.write_bytes("\n".join(COLOURS).encode(encoding))
        with pytest.raises(UsageError, match="--text-encoding"):
            read(file)
        assert read(file, encoding) == COLOURS

    def test_the_line_is_shown_that_is_no_utf_8(self, tmp_path):
        (tmp_path / "l").write_bytes(b"rot\ngr\xfcn\nblau\n")
        with pytest.raises(UsageError, match="as Latin-1 this line would be 'grün'") as caught:
            read(tmp_path / "l")
        assert "--text-encoding latin-1" in caught.value.remedy

    @pytest.mark.parametrize(
        ("data", "encoding", "fault"),
        [
            (b"PK\x03\x04\0\0\0\0\x08", None, "it is not text: it starts with"),
            (b"\x80\x04\x95", None, "is not UTF-8"),
            (b"rot", "klingon", "'klingon' is not the name of an encoding"),
            (b"gr\xfcn", "ascii", "it is not ascii"),
        ],
    )
    def test_other_bytes_are_refused(self, tmp_path, data, encoding, fault):
        (tmp_path / "l").write_bytes(data)
        with pytest.raises(UsageError, match=fault):
            read(tmp_path / "l", encoding)


# Names as people give them: none that would be taken for a number, a row or an object.
NAMES = st.lists(
    st.text(st.characters(categories=("Ll", "Lu", "Nd"), include_characters=" _-"), min_size=1)
    .map(lambda name: f"x{name.strip()}y"),
    min_size=2, max_size=20, unique=True,
)  # fmt: skip


@given(NAMES, st.sampled_from(["list", "by index", "by name", "lines", "numbered", "rows"]),
       st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
       st.sampled_from(["\n", "\r\n", "\r"]))  # fmt: skip
def test_names_come_back_from_every_form(tmp_path_factory, names, form, encoding, end):
    numbered = list(enumerate(names))
    text = {
        "list": json.dumps(names),
        "by index": json.dumps({str(i): name for i, name in reversed(numbered)}),
        "by name": json.dumps({name: i for i, name in numbered}, ensure_ascii=False),
        "lines": end.join(names),
        "numbered": end.join(f"{i}: {name}" for i, name in numbered),
        "rows": end.join(f"{i};{name}" for i, name in reversed(numbered)),
    }[form]
    file = tmp_path_factory.getbasetemp() / "labels"
    file.write_bytes(text.encode(encoding))
    assert read(file) == tuple(names)


@given(st.text())
def test_any_text_is_read_or_refused(text):
    try:
        found = parse(text, "f")
    except UsageError:
        return
    assert len(found) >= 1
    assert found.fit(len(found)) == found


# One label on each line


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        (b"cat\ndog\n", ("cat", "dog")),
        (b"cat\ndog", ("cat", "dog")),
        (b"cat\ndog\n\n\n", ("cat", "dog")),
        (b"cat\r\ndog\r\n", ("cat", "dog")),
        (b"\xef\xbb\xbfcat\n", ("cat",)),
        (b"cat\n\ndog\n", ("cat", "", "dog")),
        ("grüner Hund\n".encode(), ("grüner Hund",)),
    ],
)
def test_label_file_has_a_label_on_each_line(tmp_path, content, labels):
    (tmp_path / "labels.txt").write_bytes(content)
    assert read(tmp_path / "labels.txt") == labels


def test_label_file_that_cannot_be_read_is_refused_by_name(tmp_path):
    (tmp_path / "latin1.txt").write_bytes(b"gr\xfcn\n")
    for name in ("latin1.txt", "missing.txt"):
        with pytest.raises(UsageError) as caught:
            read(tmp_path / name)
        assert caught.value.message.startswith(f"cannot read the labels in {tmp_path / name}: ")
