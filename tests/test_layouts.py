"""Data sets as other tools, systems and machines leave them: what can only mean one thing is read, and said."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from detector.__main__ import main, run_command
from detector.data.detection import with_sizes
from detector.data.formats.annotations import Annotations
from detector.data.formats.building import Source
from detector.data.formats.reading import has_part, read_annotations
from detector.errors import DataError

XML = """<annotation><filename>{name}</filename><size><width>40</width><height>20</height></size>
<object><name> cat </name><bndbox><xmin>11</xmin><ymin>3</ymin><xmax>30</xmax><ymax>8</ymax></bndbox></object>
</annotation>
"""
ROW = "0 0.5 0.5 0.25 0.5\n"


def lay_out(root: Path, files: dict[str, str | bytes | None]) -> Path:
    """Files by their names: their text or bytes, or None for an image."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            Image.new("RGB", (40, 20)).save(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def names_of(found: Annotations) -> list[str]:
    return [found.file_name(index) for index in range(len(found))]


def yolo_labels(folder: str, suffix: str = ".txt") -> dict[str, str | bytes | None]:
    return {f"labels/{folder}/{name}{suffix}": ROW for name in "ab"}


def yolo_images(folder: str, suffix: str = ".jpg") -> dict[str, str | bytes | None]:
    return {f"images/{folder}/{name}{suffix}": None for name in "ab"}


YOLO: dict[str, tuple[dict[str, str | bytes | None], str]] = {
    "BOM and Windows' line ends": (
        {"data.yaml": "\ufefftrain: images/train\r\nnames: [cat]\r\n", "labels/train/a.txt": "\ufeff" + ROW + "\r\n"},
        "",
    ),
    "upper-case suffixes": ({"data.yaml": "train: images/train\nnames: [cat]\n"}, ""),
    "backslashes": ({"data.yaml": "train: .\\images\\train\nnames: [cat]\n"}, "is taken for images/train"),
    "path of another machine": (
        {"data.yaml": "path: /content/mine\ntrain: images/train\nnames: [cat]\n"},
        "path /content/mine does not exist, so paths are relative to data.yaml",
    ),
    "path of Windows": ({"data.yaml": "path: C:\\mine\ntrain: images/train\nnames: [cat]\n"}, "path C:\\mine does not"),
    "part of another machine": (
        {"data.yaml": "train: /content/mine/images/train\nnames: [cat]\n"},
        "/content/mine/images/train is taken for images/train",
    ),
    "list of another machine": (
        {
            "data.yaml": "train: D:\\mine\\train.txt\nnames: [cat]\n",
            "train.txt": "\ufeffD:\\mine\\images\\train\\a.jpg\r\n/content/mine/images/train/b.jpg\r\n",
        },
        "read 2 images listed with folders that are not here, found below",
    ),
    "CVAT's list": (
        {
            "data.yaml": "path: .\ntrain: train.txt\nnames: {0: cat}\n",
            "train.txt": "data/images/train/a.jpg\ndata/images/train/b.jpg\n",
        },
        "read 2 images listed",
    ),
}


@pytest.mark.parametrize("name", YOLO)
def test_yolo_of_other_tools(name: str, tmp_path: Path) -> None:
    files, said = YOLO[name]
    suffixes = (".JPG", ".TXT") if name.startswith("upper") else (".jpg", ".txt")
    whole = yolo_images("train", suffixes[0]) | yolo_labels("train", suffixes[1]) | files
    if "list" in name:
        whole |= {"images/train/c.jpg": None, "labels/train/c.txt": "0 0.5 0.5 0.1 0.1\n"}
    found = read_annotations(lay_out(tmp_path, whole))
    assert [own.lower() for own in names_of(found)] == ["images/train/a.jpg", "images/train/b.jpg"]
    assert found.boxes_xywh.tolist() == [[15, 5, 10, 10]] * 2
    assert said in found.notice
    assert "not used" not in found.notice  # a list does not name the images of all label files


@pytest.mark.parametrize(
    ("train", "files", "words"),
    [
        ("/elsewhere/images", {}, "elsewhere/images does not exist"),  # that of val may have the same name
        ("list.txt", {"list.txt": "x/c.jpg\n"}, "list.txt:1: x/c.jpg does not exist; correct the path"),
        ("list.txt", {"list.txt": "other/a.jpg\n"}, r"did you mean images/train/a.jpg\?"),  # folders that do not agree
        ("list.txt", {"images/val/a.jpg": None, "list.txt": "a.jpg\n"}, "it may be any of 2 files"),
    ],
)
def test_yolo_that_may_mean_something_else(
    train: str, files: dict[str, str | bytes | None], words: str, tmp_path: Path
) -> None:
    yaml: dict[str, str | bytes | None] = {"data.yaml": f"train: {train}\nnames: [cat]\n"}
    with pytest.raises(DataError, match=words):
        read_annotations(lay_out(tmp_path, yolo_images("train") | yolo_labels("train") | yaml | files))


VOC = {
    "Kaggle's": {f"annotations/{name}.xml": XML.format(name=name) for name in "ab"}
    | {f"images/{name}.png": None for name in "ab"},
    "BOM, Windows' line ends and names, upper-case suffixes": {
        f"Annotations/{name}.XML": "\ufeff" + XML.format(name=f"C:\\mine\\{name}.jpg").replace("\n", "\r\n")
        for name in "ab"
    }
    | {f"JPEGImages/{name}.JPG": None for name in "ab"},
    "a year of the devkit": {f"VOC2007/Annotations/{name}.xml": XML.format(name=name) for name in "ab"}
    | {f"VOC2007/JPEGImages/{name}.jpg": None for name in "ab"},
    "a folder per part": {f"train/Annotations/{name}.xml": XML.format(name=name) for name in "ab"}
    | {f"train/images/{name}.jpg": None for name in "ab"}
    | {"val/Annotations/c.xml": XML.format(name="c"), "val/images/c.jpg": None},
}


@pytest.mark.parametrize("name", VOC)
def test_voc_of_other_tools(name: str, tmp_path: Path) -> None:
    source = Source(lay_out(tmp_path, VOC[name]))
    found = read_annotations(source)
    assert [Path(own).stem for own in names_of(found)] == ["a", "b"]
    assert all((found.images / own).is_file() for own in names_of(found))
    assert found.boxes_xywh.tolist() == [[10, 2, 20, 6]] * 2
    assert [own.name for own in found.categories] == ["cat"]
    assert has_part(source, "val") == name.startswith("a folder")


def test_voc_of_several_years_is_an_error_that_lists_them(tmp_path: Path) -> None:
    files = {f"VOC{year}/Annotations/a.xml": XML.format(name="a") for year in (2007, 2012)}
    with pytest.raises(DataError, match=r"several data sets: give .*VOC2007 or .*VOC2012, or several as a list"):
        read_annotations(lay_out(tmp_path, files))


def test_images_of_other_names_than_their_xml_files_are_split(tmp_path: Path) -> None:
    files = {f"Annotations/{name}.xml": XML.format(name=f"img_{name}.jpg") for name in "abcd"}
    lay_out(tmp_path / "voc", files | {f"JPEGImages/img_{name}.jpg": None for name in "abcd"})
    assert run_command("split", [str(tmp_path / "voc"), "--folds", "2", "--output", str(tmp_path / "parts")]) == 0
    vals = [read_annotations(tmp_path / f"parts/fold{number}/ImageSets/Main/val.txt") for number in (1, 2)]
    assert sorted(names_of(vals[0]) + names_of(vals[1])) == [f"img_{name}.jpg" for name in "abcd"]


def test_one_image_has_one_xml_file(tmp_path: Path) -> None:
    xml = {f"Annotations/{name}.xml": XML.format(name="a.jpg") for name in ("a", "b")}
    root = lay_out(tmp_path, xml | {"JPEGImages/a.jpg": None, "JPEGImages/a.png": None})
    with pytest.raises(DataError, match=r"b\.xml: is of the image a\.jpg, as .*Annotations/a\.xml is"):
        read_annotations(root)
    lay_out(root, {"ImageSets/Main/train.txt": "a\nb\na\n", "Annotations/b.xml": XML.format(name="a.png")})
    lay_out(root, {"JPEGImages/b.png": None})
    found = read_annotations(root)
    assert names_of(found) == ["a.jpg", "b.png"]  # filename tells a.jpg from a.png
    assert "read 1 image listed again, read once" in found.notice


@pytest.mark.parametrize(
    "files",
    [
        VOC["Kaggle's"] | {"ImageSets/Main/train.txt": "a\n"},
        {name: content for name, content in VOC["a folder per part"].items() if name.startswith("train")},
        yolo_images("train") | yolo_labels("train") | {"classes.txt": "cat\n"},
        {"train/_annotations.coco.json": "{}"},
    ],
)
def test_a_part_that_is_missing_is_not_made_of_the_others(files: dict[str, str | bytes | None], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no val, but train; give the folder, the file or the list of images"):
        read_annotations(Source(lay_out(tmp_path, files), part="val"))


def test_jsons_of_coco_in_annotations_are_not_voc(tmp_path: Path) -> None:
    root = lay_out(tmp_path, {"annotations/train.json": "{}", "voc/Annotations/a.xml": XML.format(name="a.jpg")})
    assert names_of(read_annotations(Source(root, images=tmp_path))) == ["a.jpg"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("convert x.csv out --to yolo --images imgs", "--images: imgs is not a folder; did you mean img?"),
        ("split x.csv --output out --images imgs", "--images: imgs is not a folder; did you mean img?"),
        ("convert x.csv out --to yolo --images x.csv", "--images: x.csv is not a folder\n"),  # not: did you mean
        (
            "convert ImageSets/Main/trian.txt out --to coco",
            "no such file or folder; did you mean ImageSets/Main/train.txt",
        ),
        ("merge ../n=x.csv out --to coco", "../n=x.csv: ../n leads out of the folder of images"),
        ("split x.csv --output out --one-based true", "--one-based is of Pascal VOC, but x.csv is read as csv"),
    ],
)
def test_paths_of_the_command_line(
    command: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files: dict[str, str | bytes | None] = {
        "img/a.jpg": None,
        "y.csv": "",
        "ImageSets/Main/train.txt": "",
        "x.csv": "path,x1,y1,x2,y2,class,width,height\na.jpg,1,2,30,12,0,40,20\n",
    }
    monkeypatch.chdir(lay_out(tmp_path, files))
    assert main(command.split()) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_boxes_without_area_are_converted_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(lay_out(tmp_path, {"a.jpg": None, "x.csv": "a.jpg,1,2,30,12,cat\na.jpg,30,2,1,12,cat\n"}))
    assert main(["convert", "x.csv", "out.json", "--to", "coco"]) == 0
    assert "x.csv: 1 box without a positive width and height (first: annotation 2)" in capsys.readouterr().err
    assert len(read_annotations(tmp_path / "out.json").labels) == 2


def test_csv_with_its_classes_is_split_in_its_own_folder(tmp_path: Path) -> None:
    rows = "".join(f"{name}.jpg,1,2,30,12,cat\n" for name in "abcdef")
    root = lay_out(tmp_path, {"boxes.csv": rows, "classes.csv": "cat,7\n", "old/classes.csv": "dog,1\n"})
    for output, code in ((root, 0), (root / "new", 0), (root / "old", 2)):  # another's classes are not overwritten
        assert run_command("split", [str(root / "boxes.csv"), "--val", "0.4", "--output", str(output)]) == code
    for folder in (root, root / "new"):
        found = read_annotations(folder / "train.csv")
        assert found.categories == [(7, "cat")]
        own = names_of(found) + names_of(read_annotations(folder / "val.csv"))
        assert sorted(own) == [f"{name}.jpg" for name in "abcdef"]
    assert (root / "old/classes.csv").read_text() == "dog,1\n"
    assert not (root / "old/train.csv").exists()


@pytest.mark.parametrize(
    ("files", "kept"),
    [
        (
            yolo_images("train") | yolo_labels("train") | {"data.yaml": "train: images/train\nnames: [cat]\n"},
            "data.yaml",
        ),
        (VOC["Kaggle's"] | {"Annotations/a.xml": "<annotation/>", "Annotations/b.xml": "<annotation/>"}, "Annotations"),
    ],
)
def test_a_split_in_the_folder_of_the_data_changes_nothing_there(
    files: dict[str, str | bytes | None], kept: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = lay_out(tmp_path, files)
    before = {path: path.read_bytes() for path in root.rglob("*.*")}
    assert run_command("split", [str(root), "--val", "0.5", "--output", str(root)]) == 2
    assert f"{root / kept}: exists already" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in root.rglob("*.*")}


def test_an_image_without_a_size_that_is_not_there_is_suggested(tmp_path: Path) -> None:
    csv = "path,x1,y1,x2,y2,class\nimg\\a.jpg,1,2,30,12,0\n"
    found = read_annotations(lay_out(tmp_path, {"img/a.jpg": None, "x.csv": csv}) / "x.csv")
    with pytest.raises(DataError, match=r"did you mean img/a\.jpg\? detector doctor --fix"):
        with_sizes(found, found.images)


CSV = {
    "underscores, and ids as names": "image_id,x_min,y_min,x_max,y_max,class_id\na,1,2,30,12,0\nb,,,,,\n",
    "capitals, BOM, CRLF": "\ufeffImage Path,XMin,YMin,XMax,YMax,Label\r\na.jpg,1,2,30,12,0\r\nb.jpg,,,,,",
    "an index and NaN": ",filename,xmin,ymin,xmax,ymax,class\n0,a.jpg,1,2,30,12,0\n1,b.jpg,NaN,nan,nan,nan,\n",
    "a class without a box": "file,x1,y1,x2,y2,category\na.jpg,1,2,30,12,0\nb.jpg,,,,,nothing\n",
}


@pytest.mark.parametrize("name", CSV)
def test_csv_of_other_tools(name: str, tmp_path: Path) -> None:
    found = read_annotations(lay_out(tmp_path, {"a.jpg": None, "b.jpg": None, "x.csv": CSV[name]}) / "x.csv")
    assert names_of(found) == ["a.jpg", "b.jpg"]
    assert found.boxes_xywh.tolist() == [[1, 2, 29, 10]]
    assert [own.name for own in found.categories] == ["0"]
    assert ("1 row with a class and no box" in found.notice) == name.startswith("a class")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'image_id,width,height,bbox\na,40,20,"[1, 2, 3, 4]"\n', "is neither a header with the box"),
        ("path,x1,y1,x2,y2,class\na.jpg,1,2,3,4,bébé\n".encode("latin-1"), "is not UTF-8 text .*; save it as UTF-8"),
        ("path,x1,y1,x2,y2,class\na.jpg,1,2,3,4,cat\n".encode("utf-16"), "is not UTF-8 text .*; save it as UTF-8"),
    ],
)
def test_csv_that_cannot_be_read_says_why(content: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        read_annotations(lay_out(tmp_path, {"x.csv": content}) / "x.csv")
