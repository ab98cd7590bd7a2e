"""What the data decides of a config: by hand, overridden, and kept by a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import TINY

from detector.__main__ import main
from detector.commands.summary import open_config
from detector.config.loader import load_config
from detector.config.schema import DERIVED
from detector.errors import ConfigError
from detector.models.backbones import BACKBONES
from detector.structures import Category
from detector.tasks import detection
from detector.training.derived import RULES, derive
from detector.training.fitting import fit
from detector.training.run_folder import RunFolder


class Squares:
    """Images with squares of these sides, one each."""

    categories = (Category(1, "square"),)

    def __init__(self, sides: list[int], height: int = 200, width: int = 400) -> None:
        self.sides, self.height, self.width = sides, height, width

    def __len__(self) -> int:
        return len(self.sides)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Any, Any]:
        return np.zeros((self.height, self.width, 3), np.uint8), [[0, 0, self.sides[index], self.sides[index]]], [0]


def derived(sides: list[int], tmp_path: Path, *overrides: str) -> tuple[Any, list[str]]:
    given = ["train.batch_size=2", "train.epochs=5", "model.anchors.base_size=auto", *overrides]
    config = load_config("scratch.yaml", given)
    return derive(config, lambda config: detection.open_own(config, "train", Squares(sides)))


@pytest.mark.parametrize(
    ("sides", "long", "base"),
    [
        # Quantiles 0.1 and 0.05 of eleven are the second, and half way between it and the first. 20 of 400 px is 5 %;
        # 16 / 0.05 = 320. There it is 16 px, as is the first: two strides of 8.
        ([20] * 2 + [60] * 9, 320, 2.0),
        # 10 %: 160, so 256, where 20 px are 12.8 and 40 px 25.6; 19.2 / 8 = 2.4
        ([20] + [40] * 10, 256, 2.4),
        # 1 %: 1600, but no image is longer than 400, so 416; 4 px are 4.16, and an anchor has at least one stride.
        ([4] * 11, 416, 1.0),
        # 160 px are 102.4 at 256: more than four strides.
        ([160] * 11, 256, 4.0),
    ],
)
def test_sizes_by_hand(sides: list[int], long: int, base: float, tmp_path: Path) -> None:
    config, lines = derived(sides, tmp_path)
    assert config.data.resize.long == long
    assert config.model.anchors.base_size == pytest.approx(base)
    # 5 epochs of 6 steps
    assert config.train.schedule.warmup_steps == 3
    assert config.auto == []
    assert [line.split(":")[0] for line in lines] == list(DERIVED) == list(RULES)


def test_small_images_are_enlarged(tmp_path: Path) -> None:
    config = load_config("scratch.yaml", ["train.batch_size=2", "train.epochs=5"])
    small = Squares([20] * 11, 96, 128)  # 20 of 128 px: 103, and the median is 128
    assert derive(config, lambda config: detection.open_own(config, "train", small))[0].data.resize.long == 256


def test_a_value_takes_the_place_of_auto(tmp_path: Path) -> None:
    config, lines = derived([20] * 11, tmp_path, "data.resize.long=640", "train.schedule.warmup_steps=7")
    assert (config.data.resize.long, config.train.schedule.warmup_steps) == (640, 7)
    assert config.model.anchors.base_size == 4.0  # 20 px are 32 at 640
    assert [line.split(":")[0] for line in lines] == ["model.anchors.base_size"]


def test_what_another_key_replaces_is_not_derived(tmp_path: Path) -> None:
    _, lines = derived([20] * 11, tmp_path, "data.resize.fixed=[64,64]", "train.schedule.warmup_epochs=1")
    assert [line.split(":")[0] for line in lines] == ["model.anchors.base_size"]


def test_a_run_keeps_the_values_and_resumes_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "tiny", TINY)
    overrides = ["model.backbone.name=tiny", "train.steps=1", "train.batch_size=2", "data.workers=0", "data.val=null"]
    overrides += ["model.anchors.base_size=auto"]
    config, run = load_config("scratch.yaml", overrides), RunFolder(tmp_path / "run")
    own = Squares([20] * 4)
    for resume in (False, True):
        assert fit(config, run, torch.device("cpu"), resume, (own, None))
    kept = load_config(run.path / "config.yaml")
    assert (kept.auto, kept.data.resize.long, kept.train.schedule.warmup_steps) == ([], 320, 1)
    with pytest.raises(ConfigError, match=r"model\.anchors\.base_size was 2.0, is 2.2"):
        fit(
            load_config("scratch.yaml", [*overrides, "data.resize.long=352"]),
            run,
            torch.device("cpu"),
            True,
            (own, None),
        )


@pytest.mark.parametrize(
    ("config", "override", "message"),
    [
        ("scratch.yaml", "data.resize.short=auto", "data.resize.short: must be a list"),
        ("scratch.yaml", "auto=[train.epochs]", "train.epochs is not derived from data; use data.resize.long"),
        (
            "classify_finetune.yaml",
            "data.resize.long=auto",
            "data.resize: has no effect here, it is for task",
        ),
    ],
)
def test_what_cannot_be_auto_is_one_line(config: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(config, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_data_auto_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"scratch.yaml: data\.resize\.long: auto .* such as data\.resize\.long=1333"):
        open_config("scratch.yaml", [], allow_code=False)
    # What only training needs may stay open.
    assert open_config("classify_finetune.yaml", [], allow_code=False)[0].auto == ["train.schedule.warmup_steps"]


def test_the_doctor_derives_as_training_does(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"data.train.images={shapes}/images", "data.val=null"]
    command = ["doctor", "--config", "scratch.yaml", "--quick", *given]
    assert main([*command, f"data.train.annotations={shapes}/annotations/train.json"]) == 0
    assert "data.resize.long: 256, derived: " in capsys.readouterr().err
    # What cannot be derived is a finding, not an end.
    empty = json.loads((shapes / "annotations" / "train.json").read_text()) | {"annotations": []}
    (tmp_path / "empty.json").write_text(json.dumps(empty))
    assert main([*command, f"data.train.annotations={tmp_path}/empty.json"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("data.resize.long: the default is assumed")
    assert "[objects-none]" in captured.out
