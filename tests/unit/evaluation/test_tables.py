"""Tables as people keep them: headers, separators, encodings, paths; what is unclear is refused."""

import csv
import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tfserve_kit.errors import UsageError
from tfserve_kit.evaluation.datasets import open_dataset
from tfserve_kit.evaluation.tables import CsvOptions


@pytest.fixture
def write(tmp_path):
    """Write a table beside the pictures a.png, b.png, sub/c.png; return its path."""
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "b.png", "sub/c.png", "plain"):
        Image.new("L", (2, 2), 9).save(tmp_path / name, "PNG")

    def write_text(text, encoding="utf-8", name="set.csv"):
        (tmp_path / name).write_bytes(text.encode(encoding))
        return tmp_path / name

    return write_text


def opened(file, **given):
    return open_dataset([file], CsvOptions(**given))


def pairs(dataset):
    return [(each.name.rpartition("/")[2], each.label)
            for each in dataset.read(range(len(dataset)))]  # fmt: skip


AB = [("a.png", "cat"), ("b.png", "dog")]


@pytest.mark.parametrize(
    "text",
    [
        "a.png,cat\nb.png,dog\n",
        "filename,class\na.png,cat\nb.png,dog\n",
        "image,label\r\na.png,cat\r\nb.png,dog\r\n",
        "path,label\ra.png,cat\rb.png,dog",
        "FILE_NAME,Class Name\na.png,cat\nb.png,dog\n",
        "class,image\ncat,a.png\ndog,b.png\n",
        "Bild,Tier\na.png,cat\nb.png,dog\n",
        "cat,a.png\ndog,b.png\n",
        "a.png;cat\nb.png;dog\n",
        "Bild;Tier\na.png;cat\nb.png;dog\n",
        "filename\tclass\na.png\tcat\nb.png\tdog\n",
        "a.png|cat\nb.png|dog\n",
        "sep=;\nfilename;class\na.png;cat\nb.png;dog\n",
        '"filename","class"\n"a.png","cat"\n"b.png","dog"\n',
        "a.png, cat\nb.png, dog \n",
        "a.png cat\nb.png dog\n",
        "# made by hand\n\nfilename,class\n\na.png,cat\n# b is new\nb.png,dog\n\n",
        "#filename,class\na.png,cat\nb.png,dog\n",
        "id,filename,width,class\n1,a.png,2,cat\n2,b.png,2,dog\n",
        ",label,image\n0,cat,a.png\n1,dog,b.png\n",
        "./a.png,cat\nsub/../b.png,dog\n",
        "a.png,cat,\nb.png,dog,\n",
        "filename,class,\na.png,cat,\nb.png,dog,\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_way_to_write_a_table_gives_the_same_set(write, text, encoding):
    found = opened(write(text, encoding))
    assert pairs(found) == AB
    assert found.class_names == {"cat", "dog"}


@pytest.mark.parametrize(
    ("text", "remark"),
    [
        ("filename,class\na.png,cat\n",
         "the first row is a header: filename, class (change: --no-csv-header)"),
        ("Bild,Tier\na.png,cat\n",
         "the first row is a header: Bild, Tier (change: --no-csv-header)"),
        ("a.png;cat\n", "columns are separated by semicolon (change: --csv-separator)"),
        ("a.png cat\n", "columns are separated by space (change: --csv-separator)"),
        ("cat,a.png\n",
         "column 2 is the path, column 1 the label (change: --csv-columns PATH,LABEL)"),
        ("n,image,label\n1,a.png,cat\n",
         "column 'image' is the path, column 'label' the label (change: --csv-columns PATH,LABEL)"),
        ("image,label,split\na.png,cat,train\nb.png,dog,test\n",
         "all rows count, whatever column 'split' says: test, train"),
        ("a.png,cat\na.png,cat\n", "several rows name count as often"),
        ("a.png,cat\na.png,dog\n", "several labels count once for each, and at most one is right"),
    ],
)  # fmt: skip
def test_what_was_taken_for_granted_is_told(write, text, remark):
    found = opened(write(text)).remarks
    assert any(remark in each for each in found)
    assert all("(change: " in each for each in found)


def test_a_plain_table_has_nothing_to_tell(write):
    assert opened(write("a.png,cat\nb.png,dog\n")).remarks == []


class TestRowsThatCannotBeUsed:
    def test_they_define_no_class(self, write):
        found = opened(write("a.png,cat\nmissing.png,ghost\nb.png,dog\nset.csv,table\n"))
        assert found.class_names == {"cat", "dog"}
        assert len(found) == 4  # they are counted and named when their turn comes

    def test_a_missing_first_file_is_no_header(self, write):
        found = opened(write("missing.png,cat\na.png,cat\nb.png,dog\n"))
        assert [name for name, _ in pairs(found)] == ["missing.png", "a.png", "b.png"]

    @pytest.mark.parametrize(
        ("row", "reason"),
        [("b.png", "has 1 columns where the table has 2"), ("b.png,", "has no label"),
         ("b.png,dog,big", "has 3 columns where the table has 2")],
    )  # fmt: skip
    def test_broken_rows_are_named_by_their_line(self, write, row, reason):
        found = opened(write(f"filename,class\na.png,cat\n{row}\na.png,cat\n"))
        assert len(found) == 2
        ((left_out),) = found.left_out
        assert (left_out.name.rpartition("/")[2], left_out.reason) == ("set.csv line 3", reason)

    def test_a_header_in_the_middle_is_no_example(self, write):
        found = opened(write("filename,class\na.png,cat\nfilename,class\nb.png,dog\n"))
        assert pairs(found) == AB
        assert [each.reason for each in found.left_out] == ["repeats the header"]

    def test_a_quotation_mark_that_is_not_closed_swallows_nothing_in_silence(self, write):
        with pytest.raises(UsageError, match=r"line 3: unexpected end of data"):
            opened(write('filename,class\n"a.png,cat\nb.png,dog\n'))

    @pytest.mark.parametrize(
        ("text", "remedy"),
        [
            ("id,breed\nc,cat\n", "there is sub/c.png"),
            ("url,label\nhttps://example.com/a.png,cat\n", "download the pictures"),
            ("x.png,cat\n", "write paths relative to the table's folder"),
        ],
    )
    def test_the_remedy_looks_around(self, write, text, remedy):
        with pytest.raises(UsageError, match="none of the 1 examples") as caught:
            opened(write(text))
        assert remedy in caught.value.remedy

    def test_a_table_without_any_picture_is_refused_with_where_it_looked(self, write, tmp_path):
        file = write("filename,class\nx/1.png,cat\nx/2.png,dog\n")
        with pytest.raises(UsageError, match="none of the 2 examples") as caught:
            opened(file)
        assert str(tmp_path / "x" / "1.png") in caught.value.message


class TestPaths:
    def test_a_column_of_folders_goes_before_the_name(self, write):
        found = opened(write("folder,filename,label\nsub,c.png,cat\n.,a.png,dog\n"))
        assert pairs(found) == [("c.png", "cat"), ("a.png", "dog")]

    def test_windows_separators_are_understood(self, write):
        assert pairs(opened(write("sub\\c.png,cat\na.png,dog\n")))[0] == ("c.png", "cat")

    def test_paths_may_start_from_the_current_folder(self, write, tmp_path, monkeypatch):
        (tmp_path / "tables").mkdir()
        file = write("a.png,cat\nsub/c.png,dog\n", name="tables/set.csv")
        monkeypatch.chdir(tmp_path)
        found = opened(file)
        assert pairs(found) == [("a.png", "cat"), ("c.png", "dog")]
        assert "paths start from the current folder" in found.remarks[0]

    def test_files_without_an_ending_are_pictures_by_their_content(self, write):
        found = opened(write("name,label\nplain,cat\na.png,dog\n"))
        assert pairs(found) == [("plain", "cat"), ("a.png", "dog")]


class TestUnclear:
    @pytest.mark.parametrize(
        ("text", "fault", "remedy", "given"),
        [
            ("image,label\nplain,cat\n", "", "", {}),
            ("plain,label\na.png,cat\nb.png,dog\n", "", "", {}),
            ("a.png,cat,big\nb.png,dog,big\n", "the label may be in any of its columns 2 (cat), 3 "
             "(big)", "--csv-columns", {"columns": ("1", "2")}),
            ("image,breed,species\na.png,cat,x\nb.png,dog,y\n", "any of its columns 2 (breed), 3 "
             "(species)", "--csv-columns", {"columns": ("image", "breed")}),
            ("a.png,sub/c.png\nb.png,plain\n", "all name files", "--csv-columns",
             {"columns": ("1", "2")}),
            ("a.png,cat;x\na.png;x,cat\n", "separated by comma or semicolon", "--csv-separator",
             {"separator": ","}),
            ("x,y,z\nu,v,w\n", "no column holds paths of pictures", "--csv-columns", None),
            ("pixel0,pixel1,pixel2\n1,2,3\n", "which of its columns is the label is not known",
             "--csv-columns", {"columns": ("pixel2",)}),
        ],
    )  # fmt: skip
    def test_it_is_refused_and_read_once_the_option_decides(
        self, write, text, fault, remedy, given
    ):
        file = write(text)
        if fault:
            with pytest.raises(UsageError, match=re.escape(fault)) as caught:
                opened(file)
            assert remedy in caught.value.remedy
        if given is not None:
            assert len(opened(file, **given))

    def test_a_header_that_is_a_file_is_refused(self, write, tmp_path):
        (tmp_path / "image").write_bytes((tmp_path / "a.png").read_bytes())
        file = write("image,label\na.png,cat\n")
        with pytest.raises(UsageError, match="may be a header or an example") as caught:
            opened(file)
        assert "--no-csv-header" in caught.value.remedy
        assert pairs(opened(file, header=True)) == [("a.png", "cat")]
        assert pairs(opened(file, header=False)) == [("image", "label"), ("a.png", "cat")]

    @pytest.mark.parametrize(
        ("columns", "fault"),
        [(("image", "lable"), "no column 'lable'"), (("1", "9"), "column '9'")],
    )
    def test_a_column_that_is_not_there_is_named(self, write, columns, fault):
        with pytest.raises(UsageError, match=fault):
            opened(write("image,label\na.png,cat\n"), columns=columns)

    def test_columns_by_name_and_by_number(self, write):
        file = write("a,b,c\ncat,big,a.png\ndog,small,b.png\n")
        assert pairs(opened(file, columns=("c", "a"))) == AB
        assert pairs(opened(file, columns=("3", "1"))) == AB
        assert pairs(opened(file, columns=("C", "b")))[0] == ("a.png", "big")


class TestEncodings:
    def test_latin_1_is_refused_with_the_line_and_read_if_named(self, write):
        file = write("a.png,größe\n", "latin-1")
        with pytest.raises(UsageError, match=r"as Latin-1 this line would be 'a.png,größe'"):
            opened(file)
        assert opened(file, encoding="latin-1").class_names == {"größe"}

    def test_utf_16_without_a_mark_is_refused_with_its_name(self, write):
        file = write("a.png,cat\n", "utf-16-le")
        with pytest.raises(UsageError, match="UTF-16 without the mark") as caught:
            opened(file)
        assert "--text-encoding utf-16-le" in caught.value.remedy


class TestPixels:
    @pytest.mark.parametrize(
        "text",
        [
            "7,1,2,3,4\n0,5,6,7,8\n",
            "label,0,1,2,3\n7,1,2,3,4\n0,5,6,7,8\n",
            "label,1x1,1x2,2x1,2x2\n7,1,2,3,4\n0,5,6,7,8\n",
            "p0,p1,p2,p3,class\n1,2,3,4,7\n5,6,7,8,0\n",
            ",label,p0,p1,p2,p3\n0,7,1,2,3,4\n1,0,5,6,7,8\n",
            "7;1;2;3;4\n0;5;6;7;8\n",
            "digit,p0,p1,p2,p3\n7.0,1,2,3,4\n0.0,5,6,7,8\n",
            "# mine\n7\t1\t2\t3\t4\n0\t5\t6\t7\t8\n",
        ],
    )
    def test_labels_and_pixels_are_told_apart(self, write, text):
        found = opened(write(text))
        rows = [(each.label, each.load().tolist()) for each in found.read(range(2))]
        assert rows == [(7, [1, 2, 3, 4]), (0, [5, 6, 7, 8])]
        assert (found.class_names, found.indices) == (frozenset(), {0, 7})

    @pytest.mark.parametrize("text", ["cat,1,2,3\ndog,4,5,6\n", "1,2,3,cat\n4,5,6,dog\n"])
    def test_the_column_of_words_is_the_label(self, write, text):
        found = opened(write(text))
        assert [(each.label, each.load().tolist()) for each in found.read(range(2))] == [
            ("cat", [1, 2, 3]), ("dog", [4, 5, 6])
        ]  # fmt: skip
        assert (
            "is the label, the others are pixels (change: --csv-columns LABEL)" in found.remarks[0]
        )

    def test_a_header_is_told_and_is_no_class(self, write):
        found = opened(write("label,0,1,2\ncat,1,2,3\n"))
        assert found.class_names == {"cat"}
        assert "the first row is a header (change: --no-csv-header)" in found.remarks[0]


CELLS = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1).map(
    lambda text: f"x{text.strip()}x"
)


@given(labels=st.lists(CELLS, min_size=1, max_size=8), separator=st.sampled_from(",;\t|"),
       header=st.sampled_from([None, ("image", "label"), ("Bild", "Art")]),
       end=st.sampled_from(["\n", "\r\n"]),
       encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))  # fmt: skip
def test_labels_come_back_from_any_table(
    tmp_path_factory, labels, separator, header, end, encoding
):
    folder = tmp_path_factory.getbasetemp() / "tables"
    if not folder.is_dir():
        folder.mkdir()
        for number in range(8):
            Image.fromarray(np.zeros((1, 1), np.uint8)).save(folder / f"{number}.png")
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=separator, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([header] if header else [])
    writer.writerows((f"{number}.png", label) for number, label in enumerate(labels))
    (folder / "set.csv").write_bytes(stream.getvalue().encode(encoding))
    found = open_dataset([folder / "set.csv"])
    assert [each.label for each in found.read(range(len(found)))] == labels
