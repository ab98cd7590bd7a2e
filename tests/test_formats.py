"""Annotation formats are detected, and those without a reader are named wherever annotations are expected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detector.__main__ import main
from detector.data.formats.building import Source
from detector.data.formats.reading import detect
from detector.data.formats.recognition import SUPPORTED, what_it_is

BOX = {"bbox": [1, 2, 3, 4], "image_id": 1, "category_id": 1, "id": 1}
IMAGES = [{"id": 1, "file_name": "a.png", "width": 9, "height": 9}]
CATEGORIES = [{"id": 1, "name": "a"}]


def coco(**row: object) -> str:
    return json.dumps({"images": IMAGES, "annotations": [{"id": 1, "image_id": 1, **row}], "categories": CATEGORIES})


VOC = "<annotation><object><name>a</name><bndbox><xmin>1</xmin></bndbox></object></annotation>"
VIA = {"a.png1": {"filename": "a.png", "regions": [{"shape_attributes": {"name": "rect", "x": 1}}]}}
# The files of a folder, which of them is given (. for the folder itself), and what it is.
FORMATS: dict[str, tuple[dict[str, str], str, str]] = {
    "VOC": ({"a.xml": f"<?xml version='1.0'?>\n{VOC}"}, "a.xml", "Pascal VOC XML"),
    "VOC folder": ({"JPEGImages/a.jpg": "", "Annotations/a.xml": VOC}, ".", "a folder of Pascal VOC XML"),
    "CVAT": ({"a.xml": "<annotations><image id='0'></image></annotations>"}, "a.xml", "CVAT's XML"),
    "YOLO": ({"a.txt": "0 0.5 0.5 0.1 0.25\n12 0.25 0.5 1 0.03\n"}, "a.txt", "YOLO labels"),
    "YOLO with a fault": ({"a.txt": "0 0.5 0.5 0.1 0.25\n0 640 0.5\n"}, "a.txt", "YOLO labels"),
    "YOLO polygons": ({"a.txt": "0 0.5 0.5 0.1 0.25 0.2 0.3\n"}, "a.txt", "YOLO labels"),
    "YOLO folder": ({"images/a.jpg": "", "labels/a.txt": "0 0.5 0.5 0.1 0.25"}, ".", "a folder of YOLO labels"),
    "YOLO set": ({"data.yaml": "train: images\nnames: [a, b]\n", "images/a.jpg": ""}, ".", "YOLO's data.yaml"),
    "data.yaml": ({"data.yaml": "train: images\nnames:\n  0: a\n"}, "data.yaml", "YOLO's data.yaml"),
    "VIA": ({"a.json": json.dumps({"_via_img_metadata": VIA})}, "a.json", "VIA's JSON"),
    "VIA export": ({"a.json": json.dumps(VIA)}, "a.json", "VIA's JSON"),
    "VIA without regions": (
        {"a.json": json.dumps({"a.png1": {"filename": "a.png", "size": 1, "regions": [], "file_attributes": {}}})},
        "a.json",
        "VIA's JSON",
    ),
    "VIA 1 without regions": ({"a.json": '{"a1": {"filename": "a.png", "regions": {}}}'}, "a.json", "VIA's JSON"),
    "labelme": ({"a.json": json.dumps({"shapes": [], "imagePath": "a.png"})}, "a.json", "labelme's JSON"),
    "labelme folder": ({"a.json": '{"shapes": [], "imagePath": "a"}', "a.png": ""}, ".", "a folder of labelme's JSON"),
    "CreateML": (
        {"a.json": '[{"image": "a.png", "annotations": [{"label": "a", "coordinates": {"x": 1}}]}]'},
        "a.json",
        "CreateML JSON",
    ),
    "Label Studio": (
        {"a.json": '[{"id": 1, "data": {"image": "a"}, "annotations": [{"result": []}]}]'},
        "a.json",
        "Label Studio's JSON",
    ),
    "results": ({"a.json": json.dumps([{**BOX, "score": 0.5}])}, "a.json", "COCO results, which are detections"),
    "panoptic": ({"a.json": coco(segments_info=[{"bbox": [1, 2, 3, 4]}])}, "a.json", "COCO panoptic annotations"),
    "captions": ({"a.json": coco(caption="a cat")}, "a.json", "COCO captions, which have no boxes"),
    "keypoints": ({"a.json": coco(category_id=1, keypoints=[1, 2, 2])}, "a.json", "COCO keypoints without boxes"),
    "RetinaNet CSV": ({"a.csv": "a.png,1,2,3,4,cat\nb.png,,,,,\n"}, "a.csv", "a CSV file of boxes"),
    "class first CSV": ({"a.csv": "cat,a.png,1,2,3,4\ndog,b.png,1.5,2,3,4\n"}, "a.csv", "a CSV file of boxes"),
    "class second CSV": ({"a.csv": "a.png,cat,1,2,3,4\nb.png,dog,1,2,3,4\n"}, "a.csv", "a CSV file of boxes"),
    "semicolons": ({"a.csv": "a.png;1,5;2;3;4;cat\nb.png;;;;;\n"}, "a.csv", "a CSV file of boxes"),
    "named semicolons": ({"a.csv": "class;filename;xmin;ymin;xmax;ymax\n"}, "a.csv", "a CSV file of boxes"),
    "tabs": ({"a.csv": "cat\ta.png\t1\t2\t3\t4\n"}, "a.csv", "a CSV file of boxes"),
    "TSV": ({"a.tsv": "a.png\t1\t2\t3\t4\tcat\n"}, "a.tsv", "a CSV file of boxes"),
    "DeepForest CSV": ({"a.csv": "image_path,xmin,ymin,xmax,ymax,label\n"}, "a.csv", "a CSV file of boxes"),
    "TensorFlow CSV": ({"a.csv": "filename,width,height,class,xmin,ymin,xmax,ymax\n"}, "a.csv", "a CSV file of boxes"),
    "OpenImages CSV": (
        {"a.csv": "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded\n"},
        "a.csv",
        "a CSV file of boxes",
    ),
    "VIA CSV": (
        {"a.csv": "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes\n"},
        "a.csv",
        "a CSV file of boxes",
    ),
}


def lay_out(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def reader_of(name: str) -> str | None:
    """The format's reader, by what the table calls it."""
    return SUPPORTED.get(FORMATS[name][2].removeprefix("a folder of "))


@pytest.mark.parametrize("name", filter(reader_of, FORMATS))
def test_a_format_with_a_reader_is_detected(name: str, tmp_path: Path) -> None:
    files, given, _ = FORMATS[name]
    lay_out(tmp_path, files)
    assert detect(Source(tmp_path / given)) == reader_of(name)


@pytest.mark.parametrize("name", [name for name in FORMATS if not reader_of(name)])
def test_a_format_is_named_in_train_and_doctor(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, given, expected = FORMATS[name]
    lay_out(tmp_path, {"img/a.png": "", **{f"set/{file}": text for file, text in files.items()}})
    path = tmp_path / "set" / given
    paths = [f"data.train.annotations={path}", f"data.train.images={tmp_path}/img", "data.val.images=x"]
    refused = ["train", "--config", "quickstart.yaml", "--runs", str(tmp_path), *paths]
    for argv in (refused, ["doctor", "--annotations", str(path), "--images", f"{tmp_path}/img"]):
        assert main(argv) == 2
        errors = capsys.readouterr().err.strip().splitlines()
        assert len(errors) == 1
        assert f"{path}: looks like {expected}" in errors[0]
        remedies = (
            "; that cannot be read; convert it to COCO JSON with boxes",
            "and results as --results to evaluate",
        )
        assert errors[0].endswith(remedies[expected.startswith("COCO results")])
    if given == ".":  # instead of class folders
        assert main(["doctor", "--images", str(path)]) in (1, 2)


NONE: dict[str, str | bytes] = {
    "coco.json": coco(category_id=1, bbox=[1, 2, 3, 4], keypoints=[1], caption="x", score=1),
    "boxes later.json": json.dumps({"images": [{**IMAGES[0], "caption": "x" * 9000}] * 40, "annotations": [BOX]}),
    "labels.csv": "path,label\na.png,cat\n",
    "many labels.csv": "a.png,1,2,3,4,cat\nb.png,2\n",
    "digits.csv": "a.png,4,3,2,1,0\n",
    "semicolons.csv": "path;label\na.png;cat\n",
    "numbers.txt": "1 2 3\n4 5 6\n",
    "config.yaml": "task: detection\n",
    "empty.json": "",
    "bytes.json": b"\xff\xfe\0\1",
}


@pytest.mark.parametrize("name", NONE)
def test_what_is_none_of_them_is_not_named(name: str, tmp_path: Path) -> None:
    content = NONE[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert what_it_is(tmp_path / name) is None
    assert what_it_is(tmp_path / "nowhere.json") is None
