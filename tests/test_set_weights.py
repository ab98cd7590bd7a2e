"""Several sets with weights: how often their images occur, and that they take turns as a function of the epoch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detector.config.schema import DataConfig, ResizeConfig
from detector.data.detection import CocoDataset, open_dataset
from detector.data.loading.sampler import TrainBatches
from detector.data.transforms.boxes import Transform

SIZES = {"a": 8, "b": 12}


def two_sets(root: Path, weight: float, **settings: float) -> CocoDataset:
    """CSV files of gray images, each of another value, of which every third is upright."""
    value = 0
    for name, size in SIZES.items():
        rows = ""
        for number in range(size):
            value += 5
            (root / name).mkdir(exist_ok=True)
            shape = (20, 40) if number % 3 == 0 else (40, 20)
            Image.new("RGB", shape, (value, value, value)).save(root / name / f"{number}.png")
            rows += f"{number}.png,1,1,{10 + value / 10},10,thing\n"
        (root / name / "boxes.csv").write_text("path,x1,y1,x2,y2,label\n" + rows)
    sets = [{"annotations": str(root / "a/boxes.csv")}, {"annotations": str(root / "b/boxes.csv"), "weight": weight}]
    data = DataConfig.model_validate({"train": sets} | settings)
    return open_dataset(data, "train", Transform(ResizeConfig(fixed=[40, 40])), seed=4)


def names(data: CocoDataset, epoch: int) -> list[str]:
    return [data.annotations.file_name(int(index)) for index in data.shown(epoch)]


@pytest.mark.parametrize("weight", [1.5, 2.25, 3.0])
def test_images_of_a_set_take_turns_at_coming_once_more(weight: float, tmp_path: Path) -> None:
    data = two_sets(tmp_path, weight)
    assert len(data) == 8 + 12 * weight
    least, rest = int(weight), round(12 * (weight % 1))
    total: Counter[str] = Counter()
    for epoch in range(8):
        counts = Counter(names(data, epoch))
        assert {counts[f"a/{number}.png"] for number in range(8)} == {1}
        of_b = [counts[f"b/{number}.png"] for number in range(12)]
        assert sorted(of_b) == [least] * (12 - rest) + [least + 1] * rest
        total += counts
    assert len({total[f"b/{number}.png"] for number in range(12)}) == 1  # 8 epochs are whole rounds of turns
    assert names(data, 0) == [data.annotations.file_name(index) for index in range(len(data))]
    assert (names(data, 0) == names(data, 1)) == (rest == 0)


def test_a_sample_is_of_the_image_that_its_index_shows(tmp_path: Path) -> None:
    data = two_sets(tmp_path, 1.5)
    whole = {}
    for index in range(20):
        sample = data[0, index]
        whole[data.annotations.file_name(index)] = sample.image.float().mean(), sample.boxes.tolist()
    assert len({mean for mean, _ in whole.values()}) == 20
    for epoch in (0, 1, 5):
        for index, name in enumerate(names(data, epoch)):
            sample = data[epoch, index]
            assert data.annotations.file_name(sample.id) == name
            assert (sample.image.float().mean(), sample.boxes.tolist()) == whole[name]


def test_batches_are_of_one_aspect_and_a_run_resumes_at_any_step(tmp_path: Path) -> None:
    data = two_sets(tmp_path, 1.5)

    def keys(start: int, rank: int = 0, ranks: int = 1) -> list[list[tuple[int, int]]]:
        return list(TrainBatches(len(data), 4, 0, start, 28, data.is_wide, rank, ranks, shown=data.shown))

    whole = keys(0)  # 26 images: 7 steps an epoch
    for number in range(4):
        shown = data.shown(number)
        kinds = [{bool(data.is_wide[shown[index]]) for _, index in part} for part in whole[7 * number : 7 * number + 7]]
        assert sum(len(kind) > 1 for kind in kinds) <= 2  # of what is left of both kinds
    assert keys(17) == whole[17:]
    assert [own + other for own, other in zip(keys(0, 0, 2), keys(0, 1, 2), strict=True)] == whole


def test_what_is_held_back_is_never_shown(tmp_path: Path) -> None:
    data = two_sets(tmp_path, 1.5, val_share=0.3)
    seen = set(np.concatenate([data.shown(epoch) for epoch in range(12)]).tolist())
    shown = {data.annotations.file_name(index) for index in seen}
    assert shown == set(names(data, 0))
    assert 8 < len(shown) < 20
