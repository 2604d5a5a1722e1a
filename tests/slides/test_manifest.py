"""Data lists: both forms, every mistake by file and line, no case in two splits."""

import pytest

from whole_slide_cnn.errors import ManifestError, SlideError
from whole_slide_cnn.slides.manifest import Record, check_disjoint, load_manifest, manifest_classes, slide_path

CLASSES = ("normal", "tumour")


@pytest.fixture
def write(tmp_path):
    """A function that writes a data list and returns its name."""

    def write_list(text, encoding="utf-8"):
        path = tmp_path / "list.csv"
        path.write_bytes(text.encode(encoding))
        return str(path)

    return write_list


def test_header_form(write):
    path = write("slide_id,site,label,case_id,mpp\n a.svs ,x,tumour,c1,0.5\n\nb,y,0,c1,\n")
    assert load_manifest(path, CLASSES) == (Record("c1", "a.svs", 1, 0.5), Record("c1", "b", 0, None))


def test_bare_form_makes_every_slide_a_case(write):
    expected = (Record("a", "a", 0), Record("b", "b", 1))
    assert load_manifest(write("a,normal\r\nb,1\r\n"), CLASSES) == expected


@pytest.mark.parametrize("text", ["case_id,slide_id,label\nc,s,1\n", "s,1\n"])
def test_byte_order_mark_is_tolerated(write, text):
    assert load_manifest(write(text, "utf-8-sig"), CLASSES)[0].slide_id == "s"


def test_a_class_name_goes_before_an_index(write):
    assert load_manifest(write("s,1\n"), ("1", "0"))[0].label == 0


def test_quoted_fields(write):
    assert load_manifest(write('"a, second cut",normal\n'), CLASSES)[0].slide_id == "a, second cut"


@pytest.mark.parametrize(
    "text, message",
    [
        ("a,normal\nb,benign\n", "list.csv, line 2: unknown label 'benign' of slide b; the classes are normal, tumour"),
        ("a,2\n", "line 1: unknown label '2'"),
        ("a,-1\n", "line 1: unknown label '-1'"),
        ("", "list.csv names no slide"),
        ("\n \n", "names no slide"),
        ("case_id,slide_id,label\n", "names no slide"),
        ("case_id,slide_id\nc,s\n", "line 1: the header lacks label"),
        ("case_id,slide_id,label,label\nc,s,0,1\n", "line 1: the header names label twice"),
        ("case_id,slide_id,label\nc,s\n", "line 2: 2 columns where the header has 3"),
        ("case_id,slide_id,label\nc,,0\n", "line 2: slide_id is empty"),
        ("a,0\nb,0,extra\n", "line 2: a list without the header .* two columns"),
        ("a,\n", "line 1: .* two columns"),
        ("a,0\nb,1\na,0\n", "line 3: slide a is already on line 1"),
        ("case_id,slide_id,label,mpp\nc,s,0,fine\n", "line 2: mpp of slide s .* 'fine'"),
        ("case_id,slide_id,label,mpp\nc,s,0,-0.5\n", "line 2: mpp of slide s"),
        ("case_id,slide_id,label,mpp\nc,s,0,nan\n", "line 2: mpp of slide s"),
    ],
)
def test_mistakes_name_file_and_line(write, text, message):
    with pytest.raises(ManifestError, match=message):
        load_manifest(write(text), CLASSES)


def test_files_that_are_no_lists(write, tmp_path):
    with pytest.raises(ManifestError, match="absent.csv"):
        load_manifest(str(tmp_path / "absent.csv"), CLASSES)
    with pytest.raises(ManifestError, match="cannot read"):
        load_manifest(str(tmp_path), CLASSES)
    with pytest.raises(ManifestError, match="UTF-8"):
        load_manifest(write("Gewebe_ü,normal\n", "latin-1"), CLASSES)


def test_classes_of_a_list(write):
    assert manifest_classes(write("a,10\nb,9\nc,10\n")) == ("9", "10")
    assert manifest_classes(write("a,tumour\nb,10\n")) == ("10", "tumour")


def test_slide_path(tmp_path):
    for name in ("a.svs", "b.1.svs", "c"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder").mkdir()

    def find(slide_id, extension=""):
        return slide_path(Record("c", slide_id, 0), str(tmp_path), extension)

    assert find("a", ".svs") == find("a", "svs") == find("a.svs") == find("a.svs", ".svs") == str(tmp_path / "a.svs")
    assert find("b.1", ".svs") == str(tmp_path / "b.1.svs")
    assert find("c", ".svs") == str(tmp_path / "c")
    for absent in ("a", "d", "folder"):
        with pytest.raises(SlideError, match="slide {}: there is no file".format(absent)):
            find(absent, "")


def test_splits_must_not_share_cases_or_slides():
    def records(*pairs):
        return [Record(case, slide, 0) for case, slide in pairs]

    check_disjoint(
        {"train": records(("1", "a"), ("1", "b")), "val": records(("2", "c.1")), "test": records(("3", "c.2"))}
    )
    with pytest.raises(ManifestError, match="case 1 is in both train and test"):
        check_disjoint({"train": records(("1", "a")), "val": records(("2", "b")), "test": records(("1", "c"))})
    with pytest.raises(ManifestError, match="slide a is in both train and val"):
        check_disjoint({"train": records(("1", "a.svs")), "val": records(("2", "a"))})
