"""Inference that is killed and resumed finds the same, byte for byte; what happens to files meanwhile is said."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import detector
from detector.__main__ import run_command
from detector.data.formats.labels import LabelledImage, Labels, Lost
from detector.data.formats.writing import WRITERS
from detector.dev.stress import infer, link_images, tiny_checkpoint
from detector.errors import DataError, StorageError
from detector.inference.folder import Images, find_images, infer_folder
from detector.inference.images import Item
from detector.inference.packed import Packed


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny.pt")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    link_images(folder, 40)
    return folder


def run_infer(checkpoint: Path, images: Path, output: Path, *flags: str) -> int:
    arguments = ["--checkpoint", str(checkpoint), "--input", str(images), "--output", str(output), "--workers", "0"]
    return run_command("infer", [*arguments, "--device", "cpu", "model.predict.score_threshold=0.0", *flags])


def test_killed_half_way_and_resumed(checkpoint: Path, tmp_path: Path) -> None:
    link_images(tmp_path / "images", 300)
    report = infer(checkpoint, tmp_path / "images", tmp_path / "found", 300)
    assert report.is_same
    results = json.loads((tmp_path / "found" / "killed" / "predictions.json").read_text())
    assert {row["image_id"] for row in results} == set(range(1, 301))
    assert sorted(path.name for path in (tmp_path / "found" / "killed").iterdir()) == ["predictions.json"]


def test_every_place_to_stop_gives_the_same(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after each batch in turn, with half a line of the next one behind it; then while labels are written."""
    exports = ["--format", "coco,voc", "--format=yolo", "--crops", "--counts", "--draw-score", "0"]
    exports.append("model.predict.max_detections=1")
    assert run_infer(checkpoint, images, tmp_path / "whole", *exports) == 0
    output = tmp_path / "stopped"
    predict = detector.inference.predictor.Predictor.predict_samples
    write = WRITERS["yolo"].write

    def stopped(labels: Labels, path: Path) -> Lost:
        def read() -> Iterator[LabelledImage]:
            yield from islice(labels, 10)
            raise KeyboardInterrupt

        return write(replace(labels, read=read), path)

    for place in range(1, 5):
        calls = iter(range(place + 1))

        def stop(predictor: object, samples: list, score: object, calls: object = calls) -> list:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return predict(predictor, samples, score)

        with monkeypatch.context() as patch:
            patch.setattr("detector.inference.predictor.Predictor.predict_samples", stop)
            if place == 3:  # predicts the rest
                patch.setitem(WRITERS, "yolo", WRITERS["yolo"]._replace(write=stopped))
            flags = ["--resume"] if place > 1 else []
            code = run_infer(checkpoint, images, output, *exports, *flags)
        assert code == (75 if place < 4 else 0)
        assert (output / "predictions.json").exists() == (place == 4)
        if place < 3:
            with (output / "progress.jsonl").open("a") as file:
                file.write('{"file": "half')
    files = [
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("whole", "stopped")
    ]
    kinds = Counter(path.suffix for path in files[0])
    assert kinds == {".jpg": 40 + 40, ".json": 2, ".txt": 40 + 2, ".yaml": 1, ".xml": 40, ".csv": 1}
    assert files[0] == files[1]
    assert run_infer(checkpoint, images, output, "--resume", "--counts") == 0  # it is finished, and stays so
    assert run_infer(checkpoint, images, output, "--resume", "--format=cvat") == 2  # but this was not asked for


def test_files_that_vanish_change_or_come_are_said(
    checkpoint: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: object) -> list:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("detector.inference.predictor.Predictor.predict_samples", stop)
        assert run_infer(checkpoint, images, tmp_path / "found") == 75
    vanished, changed = (images / "0000" / f"{number:07}.jpg" for number in (3, 7))
    vanished.unlink()
    shutil.copy(images / "0000" / "0000008.jpg", tmp_path / "new.jpg")
    os.utime(tmp_path / "new.jpg")
    (tmp_path / "new.jpg").replace(changed)
    shutil.copy(changed, images / "0000" / "another.jpg")
    capsys.readouterr()
    assert run_infer(checkpoint, images, tmp_path / "found", "--resume", "--no-images") == 2  # asked otherwise
    assert "draw_score was 0.4, is None" in capsys.readouterr().err
    assert run_infer(checkpoint, images, tmp_path / "found", "--resume") == 1
    assert "skipped 1 image that came after the run began" in capsys.readouterr().err
    errors = [json.loads(line) for line in (tmp_path / "found" / "errors.jsonl").read_text().splitlines()]
    assert [row["file"] for row in errors] == [str(vanished), str(changed)]
    assert "does not exist" in errors[0]["error"]
    assert "was changed after the run began" in errors[1]["error"]
    names = {row["file_name"] for row in json.loads((tmp_path / "found" / "predictions.json").read_text())}
    assert len(names) == 39
    assert "0000/0000007.jpg" in names


def test_a_run_that_was_not_finished_is_not_begun_again(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "progress.jsonl").touch()
    assert run_infer(checkpoint, images, tmp_path / "found") == 2
    assert "continue it with --resume" in capsys.readouterr().err


def test_a_disk_that_fills_ends_inference_in_one_line(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each line of progress, each drawing and each result in turn does not fit."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    predictor = detector.load(checkpoint, device="cpu")
    some = Images(images, ["0000/0000000.jpg", "0000/0000001.jpg"])
    for place in ("PIL.Image.Image.save", "os.fsync", "json.dumps"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            with pytest.raises(StorageError, match=r"cannot be written: No space left.*--resume"):
                infer_folder(predictor, some, tmp_path / "found", 0.0, 0.0, batch_size=1, workers=0, resume=True)
        assert not (tmp_path / "found" / "predictions.json").exists()
    assert infer_folder(predictor, some, tmp_path / "found", 0.0, 0.0, 1, 0, resume=True).num_errors == 0


def test_images_travel_in_memory_that_is_shared(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    """Of both depths, and of one that cannot be read; what goes through the pipe does not grow with them."""
    for file in sorted((images / "0000").iterdir())[12:]:
        file.unlink()
    (images / "0000" / "broken.jpg").write_bytes(b"no image")
    deep = np.arange(300, dtype=np.uint16).reshape(10, 10, 3)
    items = [Item(np.full((333, 31, 3), 7, np.uint8), "a", ""), DataError("broken"), Item(deep, "b", "changed")]
    packed = Packed.pack(items)
    assert len(ForkingPickler.dumps(packed)) < 2_000
    first, broken, second = packed.unpack()
    assert np.array_equal(first.image, items[0].image)
    assert np.array_equal(second.image, deep)
    assert (broken.image, broken.sample, broken.error) == (None, None, "broken")
    assert Packed.pack([DataError("broken")]).unpack() == [broken]

    results = []
    for workers in ("0", "2"):
        output = tmp_path / workers
        assert run_infer(checkpoint, images, output, "--workers", workers, "--draw-score", "0.01") == 1
        drawn = {path.name: path.read_bytes() for path in (output / "images").rglob("*.jpg")}
        results.append((drawn, (output / "predictions.json").read_bytes()))
    assert len(results[0][0]) == 12
    assert results[0] == results[1]


def test_images_are_found_as_before(tmp_path: Path) -> None:
    for name in ("b.jpg", "a/c.PNG", "a/.hidden.jpg", "a/x/d.jpeg", "a/notes.txt", "e.jpg.bak", "g.TIF"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name, kind in {"plain": "PNG", "scan": "TIFF", "a/f.jfif": "JPEG", "raw.nef": "TIFF", "BMW.txt": "BMP"}.items():
        Image.new("RGB", (2, 2)).save(tmp_path / name, kind)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "linked").symlink_to("a/x")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "b.jpg")
    (tmp_path / "dead.jpg").symlink_to(tmp_path / "nothing.jpg")
    (tmp_path / os.fsdecode(b"\xff.jpg")).touch()
    found = find_images(str(tmp_path))
    assert [found.name(index) for index in range(len(found))] == [
        "a/c.PNG",
        "a/f.jfif",
        "a/x/d.jpeg",
        "b.jpg",
        "dead.jpg",  # to be named as unreadable
        "g.TIF",
        "link.jpg",
        "linked/d.jpeg",
        "plain",
        "scan",
        "\udcff.jpg",
    ]
    assert found[3] == tmp_path / "b.jpg"
    assert found.note == (
        "images by their content: 2 without a suffix, 1 .jfif;"
        " skipped: 2 .txt, 1 .bak, 1 .nef, 1 hidden, 1 without a suffix"
    )
    assert list(find_images(str(tmp_path / "*.jpg"))) == [
        tmp_path / name for name in ("b.jpg", "dead.jpg", "link.jpg", "\udcff.jpg")
    ]
    assert isinstance(found.names, np.ndarray)
