"""Whole runs: what a step changes, resuming, two ranks, signals. tests/faults has runs that are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from faults.test_ranks import Ranks
from torchvision.models.resnet import BasicBlock, ResNet

import detector
from detector.config.loader import load_config
from detector.data.loading.sampler import epoch_batches
from detector.dev import stress
from detector.errors import ConfigError, DataError, NonFiniteError
from detector.evaluation.coco import METRICS
from detector.training.fitting import fit
from detector.training.run_folder import RunFolder

# What must survive is in stress's tiny run, here on a network that evaluates faster.
TINY = ["model.backbone={name: resnet10, norm: bn}", *stress.TINY[1:]]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(shapes: Path) -> list[str]:
    """Overrides for a run of seconds on generated images (12 to train on, 6 to evaluate)."""
    splits = [f"data.{split}.annotations={shapes}/annotations/{split}.json" for split in ("train", "val")]
    return [*TINY, *splits, f"data.train.images={shapes}/images", f"data.val.images={shapes}/images"]


def steps_of(run: Path) -> list[dict]:
    """The rows of metrics.jsonl that are steps, not evaluations."""
    if not (run / "metrics.jsonl").exists():
        return []
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in rows if "loss" in row]


def assert_same_tensors(first: object, second: object, key_path: str = "") -> None:
    """Bit for bit, through nested dicts and lists."""
    assert type(first) is type(second), key_path
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), key_path
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), key_path
        for key in first:
            assert_same_tensors(first[key], second[key], f"{key_path}.{key}")
    elif isinstance(first, list):
        assert len(first) == len(second), key_path
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_same_tensors(*pair, f"{key_path}[{index}]")
    else:
        assert first == second, key_path


def test_two_ranks_follow_one_process(tmp_path: Path, tiny: list[str]) -> None:
    torch.manual_seed(0)
    torch.save(ResNet(BasicBlock, [1, 1, 1, 1]).state_dict(), tmp_path / "resnet10.pt")
    frozen = f"model.backbone={{name: resnet10, norm: frozen_bn, weights: {tmp_path}/resnet10.pt}}"
    overrides = [*tiny, frozen, "train.batch_size=8", "train.steps=5", "data.workers=0", "train.clip_norm=1"]
    overrides += ["eval.every_epochs=99"]  # once, at the end
    ranks = Ranks(tmp_path, "two", 2, *overrides, config=("quickstart.yaml",))
    assert fit(load_config("quickstart.yaml", overrides), RunFolder(tmp_path / "one"), CPU)
    parts_config = load_config("quickstart.yaml", [*overrides, "train.accumulate=4"])
    assert fit(parts_config, RunFolder(tmp_path / "parts"), CPU)
    assert ranks.codes() == [0, 0], ranks.said()
    one, two, parts = ([row["loss"] for row in steps_of(tmp_path / name)] for name in ("one", "two", "parts"))
    assert len(one) == 5
    assert one[0] != pytest.approx(one[-1], rel=0.01)  # the loss changes
    assert two == pytest.approx(one, abs=1e-4)
    assert parts == pytest.approx(one, abs=1e-4)
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert results[0]["AP50"] == pytest.approx(results[1]["AP50"], abs=1e-3)


def test_ctrl_c_saves_and_says_so(tmp_path: Path, tiny: list[str]) -> None:
    overrides = [*tiny, "train.batch_size=4", "train.epochs=500", "data.workers=1"]
    rank = Ranks(tmp_path, "run", 1, *overrides, config=("quickstart.yaml",))
    rank.wait_for_step(2)
    os.kill(rank.processes[0].pid, signal.SIGINT)
    assert rank.codes() == [75]
    assert "continue with --resume" in rank.said()[0]
    assert "Traceback" not in rank.said()[0]
    saved = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert saved["step"] == steps_of(tmp_path / "run")[-1]["step"] >= 2


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path: Path, tiny: list[str]) -> None:
    huge = [*tiny, "train.optimizer={name: sgd, lr: 1.0e+25, lr_batch_size: 4}", "train.schedule.warmup_steps=0"]
    config = load_config("quickstart.yaml", [*huge, "train.batch_size=4", "train.clip_norm=null", "data.workers=0"])
    run = RunFolder(tmp_path / "run")
    said = r"step \d+: .*lr .*cls .*box .*images (\S+train_\d+.jpg(, )?){4}\)"
    with pytest.raises(NonFiniteError, match=said) as error:
        fit(config, run, CPU)
    assert "\n" not in str(error.value)
    saved = torch.load(run.last, weights_only=True)
    assert saved["step"] == len(steps_of(run.path)) >= 1
    statistics = [tensor for name, tensor in saved["model"].items() if "running" in name]
    assert statistics
    assert all(tensor.isfinite().all() for tensor in statistics)


TWO_STEPS = ["train.batch_size=4", "train.steps=2", "data.workers=0"]


@pytest.fixture(scope="module")
def done(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of ``TWO_STEPS``, which refused runs must not change."""
    run = RunFolder(tmp_path_factory.mktemp("done") / "run")
    assert fit(load_config("quickstart.yaml", [*tiny, *TWO_STEPS]), run, CPU)
    return run


def test_an_existing_run_is_not_overwritten(done: RunFolder, tiny: list[str]) -> None:
    config, run = load_config("quickstart.yaml", [*tiny, *TWO_STEPS]), done
    before = {path: path.read_bytes() for path in run.path.iterdir()}
    with pytest.raises(ConfigError, match="--resume"):
        fit(config, run, CPU)
    assert before == {path: path.read_bytes() for path in run.path.iterdir()}


def test_a_batch_that_parts_cannot_divide_is_refused(tmp_path: Path, tiny: list[str]) -> None:
    config = load_config("quickstart.yaml", [*tiny, "train.batch_size=4", "train.accumulate=3"])
    with pytest.raises(ConfigError, match="multiple of 3"):
        fit(config, RunFolder(tmp_path / "run"), CPU)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(done: RunFolder, tmp_path: Path, tiny: list[str], precision: str) -> None:
    run = RunFolder(tmp_path / "run")
    assert fit(load_config("quickstart.yaml", [*tiny, *TWO_STEPS, f"train.precision={precision}"]), run, CPU)
    half_losses, full_losses = ([row["loss"] for row in steps_of(folder.path)] for folder in (run, done))
    assert half_losses == pytest.approx(full_losses, rel=0.05)
    assert half_losses != full_losses


def test_a_process_group_of_the_caller_is_used_and_stays(tmp_path: Path, tiny: list[str]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        run = detector.train("quickstart.yaml", [*tiny, "train.steps=1"], runs=tmp_path / "runs", device="cpu")
        assert (run / "best.pt").exists()
        dist.barrier()  # raises where there is no group
    finally:
        dist.destroy_process_group()


def test_a_broken_image_ends_the_run_and_keeps_what_was_done(tmp_path: Path, tiny: list[str], shapes: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(shapes / "images", folder)
    overrides = [*tiny, f"data.train.images={folder}", "train.batch_size=1", "train.steps=12", "data.workers=0"]
    config = load_config("quickstart.yaml", overrides)
    names = [image["file_name"] for image in json.loads((shapes / "annotations/train.json").read_text())["images"]]
    fifth = epoch_batches(np.ones(12, dtype=bool), 12, 1, config.seed, epoch=0)[4, 0]
    (folder / names[fifth]).write_bytes(b"not an image")
    run = RunFolder(tmp_path / "run")
    with pytest.raises(DataError, match=names[fifth]):
        fit(config, run, CPU)
    assert torch.load(run.last, weights_only=True)["step"] == 4

    shutil.copy(shapes / "images" / names[fifth], folder)
    assert fit(config, run, CPU, resume=True)
    whole = RunFolder(tmp_path / "whole")
    assert fit(config, whole, CPU)
    for part in ("model", "ema", "optimizer"):
        assert_same_tensors(*(torch.load(folder.last, weights_only=True)[part] for folder in (run, whole)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("train.batch_size=6", "train.batch_size was 4, is 6"),
        ("seed=3", "seed was 0, is 3"),
        ("train.optimizer.name=adamw", "train.optimizer.name was sgd, is adamw"),
        ("model.fpn.channels=32", "model.fpn.channels was 16, is 32"),
        ("train.steps=1", "has done 2 steps, the config has 1"),
    ],
)
def test_resuming_another_run_is_refused(done: RunFolder, tiny: list[str], change: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fit(load_config("quickstart.yaml", [*tiny, *TWO_STEPS, change]), done, CPU, resume=True)


def test_resuming_on_other_classes_is_refused(done: RunFolder, tmp_path: Path, tiny: list[str], shapes: Path) -> None:
    others = {}
    for split in ("train", "val"):
        tree = json.loads((shapes / f"annotations/{split}.json").read_text())
        tree["categories"].append({"id": 50, "name": "star"})
        others[split] = tmp_path / f"{split}.json"
        others[split].write_text(json.dumps(tree))
    changed = [f"data.{split}.annotations={path}" for split, path in others.items()]
    with pytest.raises(DataError, match=r"4 classes.*has 5"):
        fit(load_config("quickstart.yaml", [*tiny, *TWO_STEPS, *changed, "train.steps=3"]), done, CPU, resume=True)


def test_the_files_of_a_run(tmp_path: Path, tiny: list[str], shapes: Path) -> None:
    config = load_config("quickstart.yaml", [*tiny, "train.batch_size=5", "train.epochs=2", "data.workers=0"])
    run = RunFolder(tmp_path / "run")
    assert fit(config, run, CPU)
    names = {path.name for path in run.path.iterdir()}
    files = {"config.yaml", "environment.json", "first_batch.jpg", "metrics.jsonl", "results.json"}
    assert names == files | {"last.pt", "best.pt"}
    assert load_config(run.path / "config.yaml") == config
    rows = steps_of(run.path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]  # ceil(12 / 5) = 3 steps, twice
    results = json.loads(run.results.read_text())
    assert results["epoch"] == 2
    assert results["images_seen"] == 30
    assert results.keys() >= set(METRICS)

    # The checkpoint describes itself.
    predictor = detector.load(run.best, device="cpu")
    assert [category.name for category in predictor.categories] == ["circle", "square", "triangle", "cross"]
    assert len(predictor.predict(sorted((shapes / "images").glob("val_*.jpg"))[:1])) == 1


def test_patience_ends_a_run_that_gets_no_better(tmp_path: Path, tiny: list[str]) -> None:
    # At this rate nothing is learned, so the first evaluation stays the best, and two more are awaited.
    still = [
        *tiny,
        "train.optimizer={name: sgd, lr: 1.0e-30}",
        "train.batch_size=12",
        "train.epochs=9",
        "eval.every_epochs=1",
    ]
    config = load_config("quickstart.yaml", [*still, "train.steps=null", "train.patience=2", "data.workers=0"])
    run = RunFolder(tmp_path / "run")
    for resume in (False, True):  # a resumed run is as finished as before
        assert fit(config, run, CPU, resume=resume)
        saved = torch.load(run.last, weights_only=True)
        assert (saved["step"], saved["best_epoch"], saved["stale"]) == (3, 1, 2)
    more = load_config("quickstart.yaml", [*still, "train.patience=3"])
    assert fit(more, run, CPU, resume=True)
    assert torch.load(run.last, weights_only=True)["step"] == 4
