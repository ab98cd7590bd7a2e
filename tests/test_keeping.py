"""What was read from many label files is kept beside the runs, and is never older than the files."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_box_formats import lay_out, voc, yolo

from detector.__main__ import main
from detector.data.detection import CocoDataset
from detector.data.formats import voc as voc_reader
from detector.data.formats import yolo as yolo_reader
from detector.data.formats.building import Source
from detector.data.formats.columns import Rows
from detector.data.formats.reading import read_rows
from detector.errors import DataError
from detector.evaluation.tally import Tally
from detector.inference import evaluate

TINY = [
    "model.backbone={name: resnet10, weights: null}",
    "model.fpn={levels: [3, 4, 5], channels: 16}",
    "data.workers=0",
]
TINY += ["data.resize={short: [64], long: 64}", "train.batch_size=4", "train.steps=1", "model.anchors.base_size=auto"]


def content(rows: Rows) -> dict[str, object]:
    """All columns as lists, without how the source was read."""
    own = {field.name: getattr(rows, field.name) for field in dataclasses.fields(rows)}
    names = [rows.names[index] for index in range(len(rows.names))]
    lists = {key: value.tolist() for key, value in own.items() if hasattr(value, "tolist")}
    return {**own, **lists, "names": names, "notes": +rows.notes}


def replace_text(name: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text((root / name).read_text().replace(old, new))


def turn(name: str) -> Callable[[Path], object]:
    return lambda root: Image.new("L", (100, 200)).save(root / name)


CHANGES: dict[str, tuple[Callable[[Path], object], str, list[Callable[[Path], object]]]] = {
    "yolo": (
        lambda root: yolo(root),
        "data.yaml",
        [
            replace_text("labels/train/a.txt", "0 0.5", "1 0.5"),  # the size stays
            turn("images/train/a.png"),
            replace_text("data.yaml", "dog", "fox"),
            lambda root: (root / "labels/train/b.txt").write_text("0 0.5 0.5 0.1 0.1\n"),
            lambda root: shutil.copy(root / "images/train/a.png", root / "images/train/c.png"),
            lambda root: (root / "images/train/b.png").unlink(),
        ],
    ),
    "voc": (
        voc,
        ".",
        [
            replace_text("Annotations/a.xml", "<ymin>11<", "<ymin>12<"),
            replace_text("Annotations/b.xml", "<ymin>11<", "<ymin>0<"),  # not in train, and all corners count from 0
            lambda root: lay_out(root, {"ImageSets/Main/train.txt": "a\nb\n"}),
            lambda root: shutil.rmtree(root / "ImageSets"),
            lambda root: (root / "Annotations/b.xml").unlink(),
        ],
    ),
}


@pytest.mark.parametrize("form", CHANGES)
def test_kept_rows_are_those_of_the_files(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, path, changes = CHANGES[form]
    make(tmp_path / "set")
    folder, source = tmp_path / "runs/.labels", Source(tmp_path / "set" / path, format=form)
    before = {file: file.stat().st_mtime_ns for file in sorted((tmp_path / "set").rglob("*"))}
    first = content(read_rows(source, is_strict=True, keep_in=folder))
    assert before == {file: file.stat().st_mtime_ns for file in sorted((tmp_path / "set").rglob("*"))}

    def refuse(*_: object) -> None:
        raise AssertionError("a label file was read again")

    with monkeypatch.context() as patch:
        patch.setattr(yolo_reader, "_boxes", refuse)
        patch.setattr(voc_reader, "_parse", refuse)
        assert content(read_rows(source, is_strict=True, keep_in=folder)) == first
        with pytest.raises(AssertionError):  # another setting is another reading
            read_rows(dataclasses.replace(source, one_based=False, exif="stored"), is_strict=True, keep_in=folder)
    for change in changes:
        change(tmp_path / "set")
        found = content(read_rows(source, is_strict=True, keep_in=folder))
        assert found == content(read_rows(source, is_strict=True))
        assert found != first
        first = found
    (kept,) = folder.iterdir()
    for data in (kept.read_bytes()[:-1000], b"", b"PK\3\4" * 100):
        kept.write_bytes(data)
        assert content(read_rows(source, is_strict=True, keep_in=folder)) == first
    torch.save({"state": "other"}, kept)
    assert content(read_rows(source, is_strict=True, keep_in=folder)) == first
    kept.unlink()
    (tmp_path / "file").touch()  # where nothing can be kept, all is read
    assert content(read_rows(source, is_strict=True, keep_in=tmp_path / "file")) == first


def test_a_faulty_label_file_is_refused_whatever_is_kept(tmp_path: Path) -> None:
    path = yolo(tmp_path / "set")
    read_rows(path, is_strict=True, keep_in=tmp_path)
    (tmp_path / "set/labels/train/a.txt").write_text("0 0.5\n")
    for _ in range(2):
        with pytest.raises(DataError, match=r"a\.txt:1: has 2 numbers"):
            read_rows(path, is_strict=True, keep_in=tmp_path)


def jittered(model: object, task: object, data: CocoDataset, *_: object) -> Tally:
    """Detections that are objects moved by up to 40 % of their size, in the order of names and boxes."""
    rows = []
    for index in sorted(range(len(data)), key=lambda index: Path(data.annotations.file_name(index)).name):
        own = data.truth.rows(index)
        boxes = np.column_stack([data.truth.boxes_xywh[own].numpy().round(1), data.truth.labels[own].numpy()])
        rows += [[index, *row] for row in sorted(boxes.tolist())]
    rng = np.random.default_rng(0)
    found = np.array(rows)
    found[:, 1:3] += 0.4 * rng.random((len(found), 2)) * found[:, 3:5]
    return Tally(np.column_stack([found[:, :5], rng.random(len(found)), found[:, 5]]))


def test_a_run_reads_its_labels_once_and_is_scored_alike_in_any_format(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source, images = str(shapes / "annotations/val.json"), ["--images", str(shapes / "images")]
    for form, target in (("yolo", "yolo"), ("voc", "voc"), ("csv", "boxes.csv")):
        assert main(["convert", source, target, "--to", form, *images]) == 0
    assert main(["convert", "yolo", "coco.json", "--to", "coco"]) == 0  # with the ids of YOLO, which the model has
    reads = []
    monkeypatch.setattr(
        yolo_reader,
        "read",
        lambda source, is_strict, own=yolo_reader.read: reads.append(source) or own(source, is_strict),
    )
    data = ["data.train=yolo", "data.val={annotations: yolo, part: train}"]
    assert main(["train", "--config", "retinanet_r18_fpn.yaml", "--name", "a", *data, *TINY]) == 0
    assert len(reads) == 1
    assert main(["train", "--config", "retinanet_r18_fpn.yaml", "--name", "a", "--resume", *data, *TINY]) == 0
    monkeypatch.setattr(evaluate, "predict_all", jittered)
    assert main(["evaluate", "--checkpoint", "runs/a", "--json"]) == 0
    assert len(reads) == 1
    scores = []
    capsys.readouterr()
    for given in (["coco.json", "--images", "yolo"], ["yolo", "data.val.part=train"], ["voc"], ["boxes.csv", *images]):
        assert main(["evaluate", "--checkpoint", "runs/a", "--json", "--annotations", *given]) == 0
        scores.append(
            {
                key: value
                for key, value in json.loads(capsys.readouterr().out).items()
                if key in ("AP", "AP50", "AP75", "AR100")
            }
        )
    assert 0.1 < scores[0]["AP"] < 0.9
    for other in scores[1:]:
        assert other == pytest.approx(scores[0], abs=1e-6)
