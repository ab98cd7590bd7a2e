"""YOLO, Pascal VOC, CSV and Roboflow's COCO: read into the same columns, strictly, with file and line of each fault."""

from __future__ import annotations

import gc
import importlib.util
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz import TIMES, mutate
from PIL import Image

from detector.__main__ import main
from detector.config.schema import DataConfig
from detector.data.detection import read_split, with_sizes
from detector.data.formats.annotations import Annotations
from detector.data.formats.building import Source
from detector.data.formats.reading import read_annotations, read_rows
from detector.errors import DataError
from detector.inference.folder import find_images, known_ids

WIDTH, HEIGHT = 200, 100

VOC = """<annotation><filename>{name}</filename><size><width>200</width><height>100</height></size>
<object><name>cat</name><difficult>0</difficult>
<bndbox><xmin>{left}</xmin><ymin>11</ymin><xmax>50</xmax><ymax>40</ymax></bndbox></object>
<object><name>dog</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>200</xmax><ymax>100.5</ymax></bndbox></object>
</annotation>"""


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (WIDTH, HEIGHT)).save(path)


def lay_out(root: Path, files: dict[str, str], images: tuple[str, ...] = ()) -> Path:
    for name in images:
        image(root / name)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def boxes(annotations: Annotations) -> dict[str, list[tuple[str, list[float]]]]:
    """Class name and xywh of each box, by image."""
    return {
        annotations.file_name(index): [
            (annotations.categories[int(annotations.labels[row])].name, annotations.boxes_xywh[row].tolist())
            for row in range(*annotations.first[index : index + 2].tolist())
        ]
        for index in range(len(annotations))
    }


def yolo(root: Path, rows: str = "0 0.5 0.5 0.2 0.4\n", text: str = "train: images/train\nnames: [cat, dog]\n") -> Path:
    images = ("images/train/a.png", "images/train/b.png")
    return lay_out(root, {"labels/train/a.txt": rows, "data.yaml": text}, images) / "data.yaml"


def test_yolo_by_hand(tmp_path: Path) -> None:
    # 200×100: cx 100, cy 50, w 40, h 40. A triangle (20, 10), (60, 10), (20, 30): its extent, and half of it as area.
    found = read_annotations(yolo(tmp_path, "0 0.5 0.5 0.2 0.4\r\n\n1 0.1 0.1 0.3 0.1 0.1 0.3\n"))
    assert boxes(found) == {
        "images/train/a.png": [("cat", [80, 30, 40, 40]), ("dog", [20, 10, 40, 20])],
        "images/train/b.png": [],
    }
    assert found.areas.tolist() == pytest.approx([1600, 400])
    assert found.image_ids.tolist() == found.annotation_ids.tolist() == [1, 2]
    assert "1 image without a label file, as background" in found.notice


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("0 0.5 0.5 0.2 0.4\n0 0.5 0.5 0.2\n", "a.txt:2: has 4 numbers"),
        ("2 0.5 0.5 0.2 0.4\n", "a.txt:1: class 2 is not one of 0 to 1"),
        ("0.5 0.5 0.5 0.2 0.4\n", "a.txt:1: class 0.5"),
        ("0 100 50 40 40\n", "a.txt:1: 100 is not a fraction"),
        ("0 nan 0.5 0.2 0.4\n", "a.txt:1: nan is not a fraction"),
        ("cat 0.5 0.5 0.2 0.4\n", "a.txt:1: 'cat 0.5 0.5 0.2 0.4' must be numbers"),
        ("0 0.5 0.5 0.2 0.4 0.9\n", "a.txt:1: has 6 numbers"),
        ("0 0.5 0.5 -0.2 0.4\n", "a.txt:1: -0.2 is not a fraction"),
    ],
)
def test_a_bad_row_of_yolo_is_named_and_the_doctor_keeps_the_others(rows: str, words: str, tmp_path: Path) -> None:
    path = yolo(tmp_path, f"{rows}1 0.5 0.5 0.5 0.5\n")
    with pytest.raises(DataError) as error:
        read_annotations(path)
    assert words in str(error.value)
    found = read_rows(path, is_strict=False)
    assert [words in one for one in found.faults["row-malformed"].words] == [True]
    assert len(found.label) == rows.count("\n")  # the bad row does not drop its image


def test_yolo_keeps_the_order_of_rows_and_removes_exact_duplicates(tmp_path: Path) -> None:
    found = read_annotations(
        yolo(tmp_path, "1 0.8 0.5 0.2 0.4\n0 0.5 0.5 0.2 0.4\n1 0.8 0.5 0.2 0.4\n0 0.2 0.5 0.2 0.4\n")
    )
    assert found.labels.tolist() == [1, 0, 0]
    assert "1 exact duplicate of a box, removed" in found.notice


def test_the_last_images_of_a_path_becomes_labels(tmp_path: Path) -> None:
    names = ("images_old/images/a.png",)
    files = {"images_old/labels/a.txt": "0 0.5 0.5 0.2 0.4\n", "images_old/classes.txt": "cat\n"}
    root = lay_out(tmp_path / "images" / "set", files, names)
    found = read_annotations(Source(root / "images_old/images"))
    assert boxes(found) == {"a.png": [("cat", [80, 30, 40, 40])]}


def test_all_label_files_missing_is_an_error(tmp_path: Path) -> None:
    path = yolo(tmp_path)
    shutil.rmtree(tmp_path / "labels")
    with pytest.raises(DataError, match=r"none of the 2 images has a label file.*labels/train"):
        read_annotations(path)


def test_paths_are_relative_to_the_working_folder_as_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yolo(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    for path in ("set/data.yaml", "set", "set/images/train"):
        assert sum(map(len, boxes(read_annotations(path)).values())) == 1


@pytest.mark.parametrize("key", ["val", "valid", "validation"])
@pytest.mark.parametrize("name", ["data.yaml", "data.yml"])
def test_train_alone_is_enough_where_the_yaml_says_val(key: str, name: str, tmp_path: Path) -> None:
    yolo(tmp_path).unlink()
    files = {name: f"train: ../images/train\n{key}: list.txt\nnames: {{1: dog, 0: cat}}\nnc: 2\n"}
    lay_out(
        tmp_path,
        files | {"list.txt": "./images/val/c.png\n", "labels/val/c.txt": "1 0.5 0.5 0.2 0.4\n"},
        ("images/val/c.png",),
    )
    data = DataConfig.model_validate({"train": str(tmp_path / name)})
    train, val = (read_split(data, part, None, 0) for part in ("train", "val"))
    assert [len(train), len(val)] == [2, 1]
    assert [category.name for category in val.categories] == ["cat", "dog"]
    assert "../images/train is taken for images/train" in train.notice
    same = data.model_copy(update={"val": data.train.of_part("train")})  # as train --overfit evaluates
    assert len(read_split(same, "val", None, 0)) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: /etc\nnames: [a]\n", "train: /etc leads out of"),
        ("path: ..\ntrain: x\nnames: [a]\n", "path: .. leads out of"),
        ("train: images/train\nnames: [a, a]\n", "'a' is duplicated|name a is duplicated"),
        ("train: images/train\nnames: {0: a, 2: b}\n", "number the classes 0, 1, 2"),
        ("train: images/train\nnc: 3\nnames: [a]\n", "nc is 3, but names has 1"),
        ("train: nowhere\nnames: [a]\n", "nowhere does not exist"),
        ("names: [a]\n", "has no train"),
        ("train: [\n", "not valid YAML"),
        ("- train\n", "holds a list"),
        ("train: !!python/object/apply:os.system [ls]\nnames: [a]\n", "not valid YAML"),
    ],
)
def test_a_yaml_that_cannot_be_used(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        read_annotations(yolo(tmp_path / "set", text=text))


def voc(root: Path, left: str = "11") -> Path:
    files = {f"Annotations/{name}.xml": VOC.format(name=f"{name}.png", left=left) for name in "ab"}
    files |= {"ImageSets/Main/train.txt": "a\n", "ImageSets/Main/val.txt": "b 1\n"}
    return lay_out(root, files, ("JPEGImages/a.png", "JPEGImages/b.png"))


def test_voc_counts_from_one_unless_a_corner_of_the_folder_is_under_one(tmp_path: Path) -> None:
    found = read_annotations(voc(tmp_path))
    # From 1, the last pixel included: 11..50 is 10..50.
    assert boxes(found) == {"a.png": [("cat", [10, 10, 40, 30]), ("dog", [0, 0, 200, 100.5])]}
    assert found.is_crowd.tolist() == [False, True]
    assert "corners are assumed to count from 1, as none is under 1; if they count from 0, set" in found.notice
    assert boxes(read_annotations(Source(tmp_path, one_based=False)))["a.png"][0][1] == [11, 11, 39, 29]
    path = tmp_path / "Annotations/b.xml"  # of val: both parts count alike
    path.write_text(path.read_text().replace(">11<", "> 0.5<"))
    found = read_annotations(tmp_path)
    assert boxes(found)["a.png"][0][1] == [11, 11, 39, 29]
    assert "corners count from 0, as one is under 1" in found.notice


def test_reading_xml_leaves_nothing_to_the_garbage_collector(tmp_path: Path) -> None:
    root = voc(tmp_path)
    read_annotations(root)
    gc.collect()
    read_annotations(root)
    assert gc.collect() == 0  # with 100,000 files, what waits for it sets the peak memory


@pytest.mark.parametrize("below", ["", "Annotations/"])
def test_parts_of_voc_in_folders_of_their_own_count_alike(below: str, tmp_path: Path) -> None:
    files = {f"{part}/{below}{part}.xml": VOC.format(name="a.png", left="11") for part in ("train", "valid")}
    lay_out(tmp_path, files, ("train/train.png", "valid/valid.png"))
    sources = [Source(tmp_path / part) for part in ("train", "valid")]
    assert [read_annotations(own).boxes_xywh[0, 0] for own in sources] == [10, 10]
    path = tmp_path / f"valid/{below}valid.xml"
    path.write_text(path.read_text().replace(">11<", ">0<"))
    assert [read_annotations(own).boxes_xywh[0, 0] for own in sources] == [11, 0]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("<annotation>", "<!DOCTYPE a [<!ENTITY x 'y'>]><annotation>", "declares the entity x"),
        ("<annotation>", "<annotation>" + "<a>" * 40, "more than 32 elements inside each other"),
        ("<name>cat</name>", "", "a.xml:2: the object has no name"),
        ("<xmin>11</xmin>", "", "a.xml:2: the object cat has no bndbox"),
        (">11<", ">nan<", "a.xml:2: the box ['nan'"),
        (">11<", ">1e999<", "a.xml:2: the box ['1e999'"),
        ("</annotation>", "", "a.xml:6: is not valid XML"),
        ("annotation>", "annotations>", "holds <annotations>"),
        ("<width>200", "<width>-3", "width '-3'"),
    ],
)
def test_a_bad_file_of_voc(old: str, new: str, words: str, tmp_path: Path) -> None:
    path = voc(tmp_path) / "Annotations/a.xml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError) as error:
        read_annotations(tmp_path)
    assert words in str(error.value)
    assert "row-malformed" in read_rows(tmp_path, is_strict=False).faults


CSVS = {
    "retinanet": "a.png,10,10,50,40,cat\nb.png,,,,,\n./a.png,1.5,2,3,4,dog\n",
    "deepforest": "image_path,xmin,ymin,xmax,ymax,label\n"
    "a.png,10,10,50,40,cat\nb.png,0,0,0,0,cat\na.png,1.5,2,3,4,dog\n",
    "semicolons": "filename;class;xmin;ymin;xmax;ymax\na.png;cat;10;10;50;40\nb.png;;;;;\na.png;dog;1,5;2;3;4\n",
    "openimages": "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\n"
    "a,x,cat,1,0.05,0.25,0.1,0.4,0\nb,,,,,,,,\na,x,dog,1,0.0075,0.015,0.02,0.04,0\n",
}


@pytest.mark.parametrize("name", CSVS)
def test_csv_by_hand(name: str, tmp_path: Path) -> None:
    root = lay_out(tmp_path, {"boxes.csv": CSVS[name]}, ("a.png", "b.png"))
    found = boxes(read_annotations(Source(root / "boxes.csv", root)))
    assert list(found) == ["a.png", "b.png"]
    assert found["b.png"] == []
    for (label, box), expected in zip(
        found["a.png"], [("cat", [10, 10, 40, 30]), ("dog", [1.5, 2, 1.5, 2])], strict=True
    ):
        assert label == expected[0]
        assert box == pytest.approx(expected[1])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.png,1,2,3,4,cat\na.png,1,2,x,4,cat\n", "boxes.csv:2: the box"),
        ("a.png,1,2,3,4,cat\na.png,1,2,3,4\n", "boxes.csv:2: .* has 5 cells"),
        ("a.png,1,2,3,4,cat\n,1,2,3,4,cat\n", "boxes.csv:2: .* names no image"),
        ("a.png,1,2,3,4,\n", "boxes.csv:1: the box has no class"),
        ("a.png,1,2,inf,4,cat\n", "boxes.csv:1: the box"),
        ("image_path,xmin,ymin,xmax,label\n", "boxes.csv:1: .* neither a header"),
    ],
)
def test_a_bad_row_of_csv(text: str, words: str, tmp_path: Path) -> None:
    lay_out(tmp_path, {"boxes.csv": text}, ("a.png",))
    with pytest.raises(DataError, match=words):
        read_annotations(Source(tmp_path / "boxes.csv", format="csv"))


def test_roboflow_is_read_without_its_parent_category(tmp_path: Path) -> None:
    tree = (
        '{"images": [{"id": 0, "file_name": "a.png", "width": 200, "height": 100}], "categories":'
        ' [{"id": 0, "name": "pets", "supercategory": "none"}, {"id": 1, "name": "cat", "supercategory": "pets"}],'
        ' "annotations": [{"id": 0, "image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}]}'
    )
    files = {f"{part}/_annotations.coco.json": tree for part in ("train", "valid")}
    lay_out(tmp_path, files, ("train/a.png", "valid/a.png"))
    data = DataConfig.model_validate({"train": str(tmp_path)})
    for part, folder in (("train", "train"), ("val", "valid")):
        found = read_split(data, part, None, 0)
        assert [tuple(category) for category in found.categories] == [(1, "cat")]
        assert (found.images, boxes(found)) == (tmp_path / folder, {"a.png": [("cat", [1, 2, 3, 4])]})


def test_several_formats_at_once_are_an_error_that_lists_them(tmp_path: Path) -> None:
    yolo(voc(tmp_path))
    with pytest.raises(DataError, match=r"may be .*(voc .*or yolo|yolo .*or voc).* say which one by data.format"):
        read_annotations(tmp_path)
    assert len(read_annotations(Source(tmp_path, format="voc"))) == 1


def test_sets_of_several_formats_are_joined_by_class_name_and_weighted(tmp_path: Path) -> None:
    train = [
        {"annotations": str(yolo(tmp_path / "yolo")), "weight": 3},
        {"annotations": str(voc(tmp_path / "voc")), "weight": 2},
    ]
    data = DataConfig.model_validate({"train": train})
    found = with_sizes(read_split(data, "train", None, 0), tmp_path)
    # Images of the first set come 3 / 2 times: each once, and one of the two again.
    names = [found.file_name(index) for index in range(len(found))]
    assert sorted(set(names)) == ["voc/JPEGImages/a.png", "yolo/images/train/a.png", "yolo/images/train/b.png"]
    assert len(names) == 4
    assert [tuple(category) for category in found.categories] == [(0, "cat"), (1, "dog")]
    assert boxes(found)["voc/JPEGImages/a.png"][0] == ("cat", [10, 10, 40, 30])
    assert found.images == tmp_path
    assert "weights of the sets: an epoch has 4 images, of 3 different ones" in found.notice


def test_classes_are_selected_ordered_and_merged(tmp_path: Path) -> None:
    path = yolo(
        tmp_path,
        "0 0.5 0.5 0.2 0.4\n1 0.5 0.5 0.2 0.4\n2 0.2 0.5 0.2 0.4\n",
        "train: images/train\nnames: [cat, dog, car]\n",
    )
    data = DataConfig.model_validate({"train": str(path), "classes": ["car", {"pet": ["dog", "cat"]}]})
    found = read_split(data, "train", None, 0)
    assert [category.name for category in found.categories] == ["car", "pet"]
    assert found.labels.tolist() == [1, 1, 0]
    found = read_split(DataConfig.model_validate({"train": str(path), "classes": ["dog"]}), "train", None, 0)
    assert "data.classes leaves 1 of 3 boxes (dropped: cat 1, car 1)" in found.notice
    assert len(found) == 2
    with pytest.raises(DataError, match="did you mean 'dog'"):
        read_split(DataConfig.model_validate({"train": str(path), "classes": ["dogs"]}), "train", None, 0)


def test_the_doctor_fixes_any_format_as_coco(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = yolo(tmp_path, "0 0.5 0.5 0.2 0.4\n1 0.5 0.5\n" + "".join(f"1 0.5 0.5 0.2 0.{n}\n" for n in range(10, 99)))
    out = tmp_path / "out.json"
    assert main(["doctor", "--annotations", str(path), "--fix", str(out), "--allow-loss"]) == 1
    said = capsys.readouterr().out
    assert "a.txt:2: has 3 numbers" in said
    assert "written as COCO JSON; 1 removed: row not readable" in said
    fixed = read_annotations(Source(out, tmp_path))
    whole = read_rows(path, is_strict=False)
    assert np.array_equal(fixed.boxes_xywh, whole.boxes_xywh)
    assert fixed.file_name(0) == "images/train/a.png"


def test_the_doctor_examines_each_of_several_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yolo(tmp_path / "one", "0 0.5 0.5 0.2 0.4\n1 0.5 0.5\n1 0.2 0.5 0.2 0.4\n")
    voc(tmp_path / "two")
    val = lay_out(tmp_path / "three", {"b.csv": "c.png,1,1,9,9,dog\n"}, ("c.png",)) / "b.csv"  # its only class is 1
    image(tmp_path / "one/images/train/c.png")
    config = tmp_path / "c.yaml"
    config.write_text(f"data: {{train: [{tmp_path / 'one'}, {tmp_path / 'two'}], val: {val}, exif: upright}}\n")
    assert main(["doctor", "--config", str(config), "--json", "--html", str(tmp_path / "page.html")]) == 1
    report = json.loads(capsys.readouterr().out)
    found = {(one["check"], one["split"]): one["count"] for one in report["findings"]}
    assert found["row-malformed", "train 1"] == 1
    assert ("row-malformed", "train 2") not in found
    assert found["images-identical", "train 1/train 2"] == 1  # all images are black
    assert found["leak-identical", "train 1/val"] == found["leak-identical", "train 2/val"] == 1
    assert not [check for check, _ in found if check == "classes-differ"]
    main(["doctor", "--config", str(config), "--quick", "data.classes=[{pet: [cat, dog]}]"])
    said = capsys.readouterr()
    assert "data.classes leaves 2 of 2 boxes" in said.err
    assert "pet 2" in said.out
    assert main(["doctor", "--config", str(config), "--quick", "data.classes=[fish]"]) == 2
    assert "'fish' is not among the 2 classes" in capsys.readouterr().err


def test_inference_takes_ids_from_any_format(tmp_path: Path) -> None:
    path = yolo(tmp_path / "yolo")
    (tmp_path / "link").symlink_to(tmp_path / "yolo/images")
    for folder, names in ((tmp_path / "yolo/images/train", "ab"), (tmp_path / "link", ("train/a", "train/b"))):
        images, ids, unknown = known_ids(find_images(str(folder)), str(path))
        assert ids == {f"{name}.png": number for number, name in enumerate(names, start=1)}
        assert len(images) == 2
        assert not unknown
    voc(tmp_path / "voc")  # of which val is b
    images, ids, unknown = known_ids(find_images(str(tmp_path / "voc/JPEGImages")), str(tmp_path / "voc"))
    assert (ids, unknown) == ({"b.png": 1}, ["a.png"])
    data = tmp_path / "yolo/data.yaml"
    data.write_text(data.read_text().replace("train:", "test:").replace("val:", "other:"))
    images, ids, unknown = known_ids(find_images(str(tmp_path / "yolo/images/train")), str(data))
    assert (list(ids), unknown) == (["a.png", "b.png"], [])  # of a set that has a test part alone


# --- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("listed", "split"), [("trainval", "train"), ("test", "val")])
def test_bccd_from_voc_is_bccd_from_coco(listed: str, split: str, shared: Path) -> None:
    bccd = shared / "data/bccd"
    classes = [category.name for category in read_annotations(bccd / f"annotations/{split}.json").categories]
    sets = (
        {"annotations": str(bccd / f"voc/ImageSets/Main/{listed}.txt"), "images": str(bccd / "images")},
        {"annotations": str(bccd / f"annotations/{split}.json"), "images": str(bccd / "images")},
    )
    ours, truth = (
        read_split(DataConfig.model_validate({"train": own, "classes": classes}), "train", None, 0) for own in sets
    )
    assert "corners are assumed to count from 1" in ours.notice
    assert boxes(ours) == boxes(truth)
    for column in ("boxes_xywh", "labels", "areas", "heights", "widths", "first", "is_crowd"):
        assert torch.equal(getattr(ours, column), getattr(truth, column))


def test_deepforest_from_voc_is_deepforest_from_csv(tmp_path: Path) -> None:
    found = importlib.util.find_spec("deepforest")
    if found is None or found.origin is None:
        pytest.skip("deepforest's aerial images with VOC and CSV are not installed: pip install --no-deps deepforest")
    data = Path(found.origin).parent / "data"
    shutil.copy(data / "OSBS_029.xml", tmp_path)
    table, xml = (read_annotations(source) for source in (Source(data / "OSBS_029.csv"), Source(tmp_path, data)))
    assert boxes(table) == {
        "OSBS_029.tif": boxes(read_annotations(Source(tmp_path, data, one_based=False)))["OSBS_029.tif"]
    }
    assert len(xml.labels) == 61


# --- damage -----------------------------------------------------------------------------------------------------------


def _voc_of(root: Path, data: bytes) -> Source:
    (root / "Annotations/a.xml").write_bytes(data)
    return Source(root, format="voc")


def _yolo_of(root: Path, data: bytes) -> Source:
    (root / "labels/train/a.txt").write_bytes(data)
    return Source(root / "data.yaml", format="yolo")


def _yaml_of(root: Path, data: bytes) -> Source:
    (root / "data.yaml").write_bytes(data)
    return Source(root / "data.yaml", format="yolo")


def _csv_of(root: Path, data: bytes) -> Source:
    (root / "boxes.csv").write_bytes(data)
    return Source(root / "boxes.csv", format="csv")


YAML = "path: .\ntrain: [images/train]\nnc: 2\nnames: {0: cat, 1: dog}\n"
FUZZ: dict[str, tuple[Callable[[Path], object], str, Callable[[Path, bytes], Source]]] = {
    "voc": (voc, "Annotations/a.xml", _voc_of),
    "yolo": (lambda root: yolo(root, "0 0.5 0.5 0.2 0.4\n1 0.1 0.1 0.3 0.1 0.1 0.3\n"), "labels/train/a.txt", _yolo_of),
    "yaml": (
        lambda root: yolo(root, text="path: .\ntrain: [images/train]\nnc: 2\nnames: {0: cat, 1: dog}\n"),
        "data.yaml",
        _yaml_of,
    ),
    "csv": (lambda root: lay_out(root, {"boxes.csv": CSVS["deepforest"]}, ("a.png", "b.png")), "boxes.csv", _csv_of),
    "openimages": (
        lambda root: lay_out(root, {"boxes.csv": CSVS["openimages"]}, ("a.png", "b.png")),
        "boxes.csv",
        _csv_of,
    ),
}
WORDS = (
    b"nan",
    b"inf",
    b"-1",
    b"1e308",
    b"9" * 400,
    b"\xff\xfe",
    b"\0",
    b"&lt;",
    b"",
    b"<!ENTITY a 'b'>",
    b"\xc3\xa4",
    b'"',
    b"''",
)


@pytest.mark.parametrize("name", FUZZ)
def test_damaged_files_are_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    make, file, write = FUZZ[name]
    make(tmp_path)
    data = (tmp_path / file).read_bytes()
    refused = 0
    for number in range(400 * TIMES):
        rng = random.Random(f"{name}/{number}")
        if number % 3:
            damaged = mutate(data, rng)
        else:  # a word of the file becomes another
            words = data.replace(b",", b" , ").replace(b">", b"> ").replace(b"<", b" <").split(b" ")
            words[rng.randrange(len(words))] = rng.choice(WORDS)
            damaged = b" ".join(words)
        source = write(tmp_path, damaged)
        try:
            found = read_annotations(source)
            assert np.isfinite(found.boxes_xywh.numpy()).all()
        except DataError as error:
            refused += 1
            assert "\n" not in str(error), f"{name}/{number}"
            assert len(str(error)) < 1500, f"{name}/{number}"
            try:  # the doctor reads on, or refuses it too
                rows = read_rows(source, is_strict=False)
                assert rows.faults or name in ("yolo", "yaml"), f"{name}/{number}: {error}"
            except DataError:
                pass
    assert 20 < refused < 390 * TIMES
