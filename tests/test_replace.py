"""Training on broken images: what replaces them, what is said, and when training stops."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import CPU, TINY, assert_same_tensors, steps_of

from detector.config.loader import load_config
from detector.data.loading.bad_images import TRIES, Replaced, Replacing, Skipped
from detector.data.loading.collate import load_batches
from detector.data.loading.sampler import TrainBatches, epoch_batches
from detector.errors import DataError
from detector.tasks import get_task
from detector.training.fitting import fit
from detector.training.loop import run_evaluation
from detector.training.run_folder import RunFolder


@pytest.fixture
def small(shapes: Path) -> list[str]:
    """Overrides for a run of seconds on generated images (12 to train on, 6 to evaluate)."""
    splits = [f"data.{split}.annotations={shapes}/annotations/{split}.json" for split in ("train", "val")]
    return [*TINY, *splits, f"data.train.images={shapes}/images", f"data.val.images={shapes}/images"]


class Numbers:
    """Sample ``index`` of an epoch is the two numbers; those in ``broken`` are errors."""

    def __init__(self, count: int, broken: set[int]) -> None:
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: tuple[int, int]) -> object:
        return DataError(f"{key[1]}.jpg: broken") if key[1] in self.broken else key


def test_a_replacement_is_a_function_of_seed_epoch_and_index() -> None:
    data = Numbers(50, {3, 4, *range(10, 30)})
    first, again, other = Replacing(data, 0), Replacing(data, 0), Replacing(data, 1)
    assert first[0, 5] == (0, 5)  # a good one is itself
    replaced = {(epoch, index): first[epoch, index] for epoch in range(4) for index in data.broken}
    for (epoch, index), one in reversed(replaced.items()):  # in any order, from any instance
        assert str(again[epoch, index]) == str(one)
        assert isinstance(one, Replaced)
        assert one.sample[0] == epoch == one.epoch
        assert one.sample[1] not in data.broken
        assert str(one.errors[0]) == f"{index}.jpg: broken"
        assert all(int(str(error).partition(".")[0]) in data.broken for error in one.errors)
    assert any(len(one.errors) > 1 for one in replaced.values())  # 22 of 50 are broken, so some needed more tries
    assert len({one.sample[1] for one in replaced.values()}) > 15  # not always the same one
    assert replaced[0, 3].sample != replaced[1, 3].sample or replaced[0, 4].sample != replaced[1, 4].sample
    assert any(other[key].sample != one.sample for key, one in replaced.items())


def test_a_disk_that_is_gone_is_not_a_broken_image() -> None:
    sample = Replacing(Numbers(50, set(range(50))), 0)[0, 7]
    assert isinstance(sample, DataError)
    assert str(sample).startswith(f"7.jpg: broken; and none of {TRIES} replacements could be read")


def test_more_than_the_allowed_fraction_stops(tmp_path: Path) -> None:
    said: list[str] = []
    skipped = Skipped(100, 0.02, tmp_path / "skipped.txt", said.append)
    for name in ("a", "b", "a", "b"):  # the same two again
        skipped.add(Replaced(None, 0, [DataError(f"{name}: broken")]))
    for name in ("c", "b"):  # another epoch begins to count again
        skipped.add(Replaced(None, 1, [DataError(f"{name}: broken")]))
    assert [line.partition(" (")[0] for line in said] == [f"skipped: {name}: broken" for name in "abc"]
    # 3 of 100 are more than 0.02 · 100 = 2
    with pytest.raises(DataError, match=r"3 images of 100 could not be read, more than data.max_bad_share=0.02"):
        skipped.add(Replaced(None, 1, [DataError("a: broken")]))
    assert (tmp_path / "skipped.txt").read_text().splitlines() == ["a: broken", "b: broken", "c: broken"]
    # A resumed run names no image again.
    Skipped(100, 1.0, tmp_path / "skipped.txt", said.append).add(Replaced(None, 1, [DataError("b: broken")]))
    assert len(said) == 3


def broken_set(shapes: Path, folder: Path, count: int) -> tuple[list[str], list[str]]:
    """Overrides for a copy of the shapes whose first images are broken in several ways, and their names."""
    shutil.copytree(shapes, folder)
    names = [row["file_name"] for row in json.loads((folder / "annotations/train.json").read_text())["images"]]
    for number, name in enumerate(names[:count]):
        path = folder / "images" / name
        data = path.read_bytes()
        path.write_bytes([data[: len(data) // 2], b"", data[:-400] + bytes(400)][number % 3])
    return [f"data.train.images={folder}/images"], names[:count]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_stay_full_and_do_not_depend_on_workers_or_ranks(
    workers: int,
    tmp_path: Path,
    small: list[str],
    shapes: Path,
) -> None:
    overrides, names = broken_set(shapes, tmp_path / "broken", 3)
    config = load_config("quickstart.yaml", [*small, *overrides])
    data = Replacing(get_task(config).open_split(config, "train"), 0)

    def batches_of(rank: int, ranks: int, workers: int) -> tuple[list[torch.Tensor], set[str]]:
        skipped = Skipped(12, 1.0, tmp_path / f"{rank}_{ranks}_{workers}.txt", lambda line: None)
        sampler = TrainBatches(12, 4, 0, 0, 6, rank=rank, world_size=ranks)
        return [batch.ids for batch in load_batches(data, sampler, workers, CPU, skipped)], skipped.named

    whole, named = batches_of(0, 1, workers)
    assert [len(ids) for ids in whole] == [4] * 6
    assert {Path(line.partition(": ")[0]).name for line in named} == set(names)
    if workers:
        assert all(torch.equal(*pair) for pair in zip(whole, batches_of(0, 1, 0)[0], strict=True))
    else:
        halves = [batches_of(rank, 2, 0)[0] for rank in (0, 1)]
        assert all(torch.equal(ids, torch.cat(pair)) for ids, *pair in zip(whole, *halves, strict=True))


def test_a_run_goes_on_without_broken_images_and_resumes_exactly(
    tmp_path: Path,
    small: list[str],
    shapes: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    overrides, names = broken_set(shapes, tmp_path / "broken", 2)
    overrides = [*small, *overrides, "train.batch_size=4", "data.workers=0", "data.on_bad_image=skip"]
    whole = RunFolder(tmp_path / "whole")
    generous = [*overrides, "data.max_bad_share=0.5", "train.steps=5"]
    assert fit(load_config("quickstart.yaml", generous), whole, CPU)
    assert [row["normaliser"] > 0 for row in steps_of(whole.path)] == [True] * 5
    lines = (whole.path / "skipped.txt").read_text().splitlines()
    assert sorted(Path(line.partition(": ")[0]).name for line in lines) == sorted(names)
    printed = capsys.readouterr().err
    assert all(f"skipped: {line}" in printed for line in lines)

    # Stopped by its first broken image, then told to go on without: the same bits.
    run = RunFolder(tmp_path / "run")
    with pytest.raises(DataError, match="broken/images/"):
        fit(load_config("quickstart.yaml", [*generous, "data.on_bad_image=error"]), run, CPU)
    assert fit(load_config("quickstart.yaml", generous), run, CPU, resume=True)
    for part in ("model", "ema", "optimizer"):
        assert_same_tensors(*(torch.load(folder.last, weights_only=True)[part] for folder in (run, whole)))

    # One of twelve is 8 %, two are 17 %.
    strict = RunFolder(tmp_path / "strict")
    with pytest.raises(DataError, match=r"2 images of 12 could not be read, more than data.max_bad_share=0.1"):
        fit(load_config("quickstart.yaml", [*overrides, "data.max_bad_share=0.1", "train.epochs=2"]), strict, CPU)
    order = epoch_batches(np.ones(12, dtype=bool), 12, 4, 0, epoch=0)
    last_broken = max(step for step, batch in enumerate(order.tolist()) if {0, 1} & set(batch))
    assert torch.load(strict.last, weights_only=True)["step"] == last_broken  # saved before the batch that was too much


def test_classes_skip_and_evaluation_does_not(tmp_path: Path, colors: Path) -> None:
    folder = tmp_path / "colors"
    shutil.copytree(colors, folder)
    for split in ("train", "val"):
        (folder / split / "red" / "red_0.png").write_bytes(b"no image")
    overrides = [f"data.{split}.images={folder}/{split}" for split in ("train", "val")]
    overrides += ["data.on_bad_image=skip", "data.max_bad_share=0.2", "data.workers=0", "data.augment.mixup=0.5"]
    config = load_config("classify_quickstart.yaml", [*overrides, "data.crop.size=32"])
    task = get_task(config)
    data = task.open_split(config, "train")
    skipped = Skipped(18, 1.0, tmp_path / "skipped.txt", lambda line: None)
    batches = load_batches(Replacing(data, 0), TrainBatches(18, 6, 0, 0, 3), 0, CPU, skipped)
    assert [tuple(batch.images.shape) for batch in batches] == [(6, 3, 32, 32)] * 3
    assert {line.partition(": ")[0] for line in skipped.named} == {f"{folder}/train/red/red_0.png"}

    from detector.models import build_model

    with pytest.raises(DataError, match=r"val/red/red_0\.png: is not an image"):
        run_evaluation(build_model(config.model, 3), task, task.open_split(config, "val"), config, CPU)
