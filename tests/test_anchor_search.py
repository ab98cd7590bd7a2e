"""The search for anchors, and its verdicts on other pyramids and input sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import MAX_IOU

from detector.analysis.anchors.search import Split, best_ious, judge, options, score, search
from detector.config.loader import build_on, load_config
from detector.config.schema import AnchorConfig, MatcherConfig
from detector.data.detection import apply_box_policy
from detector.data.formats.reading import read_annotations
from detector.evaluation.coverage import Coverage, InputBoxes, coverage_of


@pytest.fixture(scope="module")
def split(shapes: Path) -> Split:
    annotations = read_annotations(shapes / "annotations" / "train.json")
    return Split(annotations, apply_box_policy(annotations, "error"), seed=0)


@pytest.fixture(scope="module")
def objects(split: Split) -> InputBoxes:
    return split.at(load_config(MAX_IOU).data.resize).objects()


@pytest.mark.parametrize(
    "start",
    [
        AnchorConfig(base_size=4.0),
        AnchorConfig(base_size=16.0, ratios=[0.2]),
        AnchorConfig(base_size=2.0, ratios=[1.0], scales=[1.5, 1.0]),
        AnchorConfig(base_size=2.0, levels={4: {"base_size": 3.0}}),
    ],
)
def test_a_suggestion_is_never_worse(objects: InputBoxes, start: AnchorConfig) -> None:
    matcher, levels = load_config(MAX_IOU).model.matcher, [3, 4, 5]
    found = search(objects, start, matcher, levels, seed=0, generations=4)
    assert found.per_cell == start.per_cell
    before, after = (best_ious(objects, config, levels) for config in (start, found))
    assert coverage_of(after, matcher).recall >= coverage_of(before, matcher).recall
    if found == start:
        return
    assert score(after, objects.labels, matcher) > score(before, objects.labels, matcher)
    assert found == search(objects, start, matcher, levels, seed=0, generations=4)  # the same seed, the same anchors


def test_every_class_counts_alike() -> None:
    # Three objects of class 0 and one of class 2: recalls 2/3 and 0, mean best IoUs 0.6 and 0.2; class 1 has none.
    best, labels = torch.tensor([0.9, 0.5, 0.4, 0.2]), torch.tensor([0, 0, 0, 2])
    assert score(best, labels, MatcherConfig()) == pytest.approx(3 * (2 / 3 + 0) / 2 + (0.6 + 0.2) / 2)


def test_anchors_that_miss_everything_are_fixed(objects: InputBoxes) -> None:
    matcher, levels = load_config(MAX_IOU).model.matcher, [3, 4, 5]
    start = AnchorConfig(base_size=16.0)  # 128 px at least, where objects have 8 to 100
    assert coverage_of(best_ious(objects, start, levels), matcher).recall < 0.2
    found = search(objects, start, matcher, levels, seed=0, generations=8)
    assert coverage_of(best_ious(objects, found, levels), matcher).recall > 0.9


@pytest.mark.parametrize(
    ("recall", "macs", "verdict"),
    [
        (0.92, 200, "pays"),
        (0.905, 200, "does not pay: under 1% more objects covered"),
        (0.899, 50, "pays"),
        (0.89, 50, "does not pay: loses objects"),
    ],
)
def test_whether_a_change_pays(recall: float, macs: int, verdict: str) -> None:
    assert judge(0.9, recall, 100, macs) == verdict


def test_other_pyramids_and_sizes(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector.analysis.anchors.search.FEWER_GENERATIONS", 1)
    model = ["model.backbone.name=resnet10", "model.fpn={levels: [3, 4, 5, 6, 7], channels: 16}"]
    config = load_config(MAX_IOU, model)
    found = {option.name: option for option in options(split, config, config.model.anchors, 4)}
    assert list(found) == ["as configured", "with P2", "without P7", "without P6 and P7", "input × 0.75", "input × 1.5"]
    assert isinstance(found["with P2"].coverage, Coverage)
    # At 128 px P3 to P7 have 16², 8², 4², 2² and 1² cells of 9 anchors; P2 adds 32².
    assert found["as configured"].anchors == 341 * 9
    assert found["with P2"].anchors == (1024 + 341) * 9
    assert found["without P6 and P7"].anchors == (256 + 64 + 16) * 9
    assert found["with P2"].macs > found["as configured"].macs > found["without P7"].macs > found["input × 0.75"].macs
    assert found["input × 1.5"].keys == "data.resize.short=[192] data.resize.long=192"


def test_other_sizes_of_a_fixed_one_change_what_counts(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector.analysis.anchors.search.FEWER_GENERATIONS", 1)
    overrides = ["model.backbone.name=resnet10", "model.fpn={levels: [3, 4, 5], channels: 16}"]
    overrides.append("data.resize={short: [640], long: 640, fixed: [128, 256], rounding: down}")
    config = load_config(MAX_IOU, overrides)
    for option in options(split, config, config.model.anchors, 4):
        changed = load_config(MAX_IOU, [*overrides, *option.keys.split()])  # as a person would give them
        height, width = changed.data.resize.fixed or []
        cells = sum(-(-height // 2**level) * -(-width // 2**level) for level in changed.model.fpn.levels)
        assert option.anchors == 9 * cells
        assert changed.data.resize.rounding == "down"
        assert changed.data.resize.short == [640]  # overruled: varying it would say nothing
        if option.name.startswith("input"):
            assert [height, width] == ([96, 192] if option.name == "input × 0.75" else [192, 384])


# --- configs that build on others -------------------------------------------------------------------------------------


def test_a_config_builds_on_a_packaged_one(tmp_path: Path) -> None:
    text = build_on("quickstart.yaml", ["train.epochs=7"], {"model": {"anchors": {"base_size": 3.0}}}, tmp_path)
    assert text.startswith("base: quickstart.yaml\n")
    (tmp_path / "own.yaml").write_text(text)
    config = load_config(tmp_path / "own.yaml")
    assert (config.train.epochs, config.model.anchors.base_size) == (7, 3.0)
    assert config.model.anchors.ratios == load_config("quickstart.yaml").model.anchors.ratios


def test_a_config_with_a_base_is_copied_onto_it(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "base.yaml").write_text("seed: 5\ntrain: {epochs: 2}\n")
    (tmp_path / "mine.yaml").write_text("base: base.yaml\ntrain: {epochs: 3}\nmodel: {anchors: {offset: 0.5}}\n")
    text = build_on(tmp_path / "mine.yaml", [], {"model": {"anchors": {"base_size": 3.0}}}, tmp_path / "deep")
    (tmp_path / "deep" / "own.yaml").write_text(text)
    config = load_config(tmp_path / "deep" / "own.yaml")
    assert (config.seed, config.train.epochs) == (5, 3)
    assert (config.model.anchors.offset, config.model.anchors.base_size) == (0.5, 3.0)
