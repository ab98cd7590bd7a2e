"""Data sets given from Python: the same run as from files, resumed exactly; what is wrong with them is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training import TINY, assert_same_tensors

import detector
from detector.checkpoints.checkpoint import read_checkpoint
from detector.config.loader import load_config
from detector.data.formats.reading import read_annotations
from detector.data.images import read_image
from detector.errors import ConfigError, DataError
from detector.tasks import detection
from detector.training import fitting
from detector.training.fitting import fit
from detector.training.run_folder import RunFolder

REPORT_BEST = fitting.report_best  # before ``short_runs`` takes it away
CPU = torch.device("cpu")
RUN = [*TINY, "data.workers=0", "train.steps=3", "train.batch_size=4"]


class Memory:
    """A list of items; from its ``spoiled``-th reading on, images are cut."""

    def __init__(self, categories: Any, items: list[Any], spoiled: int = 1 << 30) -> None:
        self.categories, self.items, self.left = categories, items, spoiled

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.left -= 1
        item = self.items[index]
        return item if self.left >= 0 else (item[0][:-7], *item[1:])


def in_memory(shapes: Path, split: str) -> Memory:
    annotations = read_annotations(shapes / f"annotations/{split}.json")
    items = []
    for index in range(len(annotations)):
        rows = annotations.rows(index)
        boxes, labels = annotations.boxes_xywh[rows].clone(), annotations.labels[rows]
        boxes[:, 2:] += boxes[:, :2]
        image = read_image(shapes / "images" / annotations.file_name(index))
        items.append((image, boxes.tolist(), labels.numpy()))
    return Memory(annotations.categories, items)


def result(run: Path) -> dict[str, Any]:
    content = read_checkpoint(run / "last.pt")
    return {key: content[key] for key in ("model", "ema", "optimizer", "step", "best")}


def test_samples_and_truth_are_those_of_the_same_files(shapes: Path) -> None:
    splits = [f"data.{split}.annotations={shapes}/annotations/{split}.json" for split in ("train", "val")]
    splits += [f"data.{split}.images={shapes}/images" for split in ("train", "val")]
    config = load_config("quickstart.yaml", [*RUN, *splits])
    for name in ("train", "val"):
        of_files = detection.open_split(config, name)
        own = detection.open_own(config, name, in_memory(shapes, name), of_files.categories)
        for one, other in ((own, of_files), (own.select([3, 1]), of_files.select([3, 1]))):
            for key in ((epoch, index) for epoch in range(2) for index in range(len(other))):
                assert_same_tensors(list(one[key]), list(other[key]))
            assert torch.equal(one.truth.labels, other.truth.labels)
            torch.testing.assert_close(one.truth.boxes_xywh, other.truth.boxes_xywh)
            assert np.array_equal(one.shapes, other.shapes) and one.summary() == other.summary()


def test_a_run_is_evaluated_reported_and_resumed_exactly(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, val = in_memory(shapes, "train"), in_memory(shapes, "val")
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "report_best", REPORT_BEST)
        run = detector.train("quickstart.yaml", RUN, "own", tmp_path, device="cpu", data=(train, val))
    assert json.loads((run / "results.json").read_text())["AP"] >= 0
    assert (run / "report.html").exists()
    assert len(detector.load(run, "cpu").predict([train[0][0]])) == 1

    # 12 readings at the start, 4 for the drawing, and 4 a step: the second step meets a cut image.
    train.left = 12 + 4 + 4 + 2
    with pytest.raises(DataError, match=r"data given for train: image \d+: is 192×185, was 192×192; an index must"):
        detector.train("quickstart.yaml", RUN, "stopped", tmp_path, device="cpu", data=(train, val))
    train.left = 1 << 30
    assert result(tmp_path / "stopped")["step"] == 1
    detector.train("quickstart.yaml", RUN, "stopped", tmp_path, resume=True, device="cpu", data=(train, val))
    assert_same_tensors(result(tmp_path / "stopped"), result(run))


CLASSES = [(7, "cat"), (3, "dog")]
IMAGE = np.zeros((64, 64, 3), dtype=np.uint8)
ITEM = (IMAGE, [[1, 2, 30, 40]], [1])
# The classes and items of train, what else is given, and what the error says.
FAULTS: dict[str, tuple[Any, list[Any], dict[str, Any], str]] = {
    "no class": ([], [ITEM], {}, "data given for train: its categories are []"),
    "an id twice": ([(1, "a"), (1, "b")], [ITEM], {}, "give each an id and a name of its own"),
    "a name twice": ([(1, "a"), (2, "a")], [ITEM], {}, "give each an id and a name of its own"),
    "names alone": (["cat", "dog"], [ITEM], {}, "its categories are ['cat', 'dog']; give one or more pairs"),
    "no labels": (CLASSES, [(IMAGE, [[1, 2, 30, 40]])], {}, "image 0: is tuple; give (image, boxes, labels)"),
    "a dict": (CLASSES, [{"image": IMAGE, "boxes": [], "labels": []}], {}, "image 0: is dict; give (image, boxes"),
    "a list": (CLASSES, [ITEM], {"data": ([ITEM], None)}, "data given for train: is list; give an object with"),
    "no pair": (CLASSES, [ITEM], {"data": Memory(CLASSES, [ITEM])}, "data: is Memory; give (train, val), or (train"),
    "no image": (CLASSES, [], {}, "data given for train: has no object to train on"),
    "no object": (CLASSES, [(IMAGE, [], [])], {}, "data given for train: has no object to train on"),
    "a float image": (CLASSES, [ITEM, (IMAGE / 255, *ITEM[1:])], {}, "image 1: the image: must be a uint8 or uint16"),
    "a missing file": (CLASSES, [("nowhere.png", *ITEM[1:])], {}, "image 0: the image: nowhere.png: does not exist"),
    "one box": (CLASSES, [(IMAGE, [1, 2, 30, 40], [1])], {}, "image 0: has boxes [4] and labels [1]; give boxes"),
    "no label": (CLASSES, [(IMAGE, [[1, 2, 30, 40]], [])], {}, "image 0: has boxes [1, 4] and labels [0]"),
    "not a number": (
        CLASSES,
        [(IMAGE, [[1, 2, 30, np.nan]], [1])],
        {},
        "image 0: has the box [1.0, 2.0, 30.0, nan]; give finite numbers",
    ),
    "a label too high": (CLASSES, [(IMAGE, [[1, 2, 30, 40]], [2])], {}, "has labels [2]; give indices of the categ"),
    "a class name": (CLASSES, [(IMAGE, [[1, 2, 30, 40]], ["dog"])], {}, "has labels ['dog']; give indices"),
    "outside": (CLASSES, [(IMAGE, [[1, 2, 90, 40]], [1])], {}, "data given for train: image 0 (0, 64×64)"),
    "other classes": (CLASSES, [ITEM], {"val": Memory([(7, "cat")], [ITEM])}, "data given for val: its categories"),
    "a share": (CLASSES, [ITEM], {"overrides": ["data.val_share=0.5"]}, "data.val_share: holds back files"),
    "a classifier": (CLASSES, [ITEM], {"config": "classify_quickstart.yaml"}, "task: data given from Python must be"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named(fault: str, tmp_path: Path) -> None:
    categories, items, others, said = FAULTS[fault]
    config = load_config(others.get("config", "quickstart.yaml"), others.get("overrides", []))
    data = others.get("data", (Memory(categories, items), others.get("val")))
    with pytest.raises((DataError, ConfigError)) as raised:
        fit(config, RunFolder(tmp_path / "run"), CPU, data=data)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()
