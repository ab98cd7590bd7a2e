"""Starting from another run's checkpoint: what is loaded, by class name or not, and that everything is reported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import detector
from detector.checkpoints.checkpoint import checkpoint_config, read_checkpoint, save_checkpoint
from detector.checkpoints.opening import open_start
from detector.checkpoints.start import begin_normalise, load_start
from detector.checkpoints.transfer import Transfer, transfer
from detector.config.loader import config_to_dict
from detector.config.schema import Config
from detector.errors import ConfigError, WeightsError
from detector.models import Model, build_model
from detector.structures import Category
from detector.training.fitting import fit
from detector.training.run_folder import RunFolder

CPU = torch.device("cpu")
PATH = Path("some/best.pt")
DETECTOR = {
    "backbone": {"name": "resnet10"},
    "fpn": {"levels": [3, 4, 5], "channels": 16},
    "anchors": {"ratios": [0.5, 1.0, 2.0], "scales": [1.0]},  # three per cell
    "head": {"num_convs": 1},
}
POOLED = {**{key: DETECTOR[key] for key in ("backbone", "fpn")}, "head": {"name": "pooled", "fuse": "mean"}}
SEGMENTER = {
    **DETECTOR,
    "fpn": {"levels": [2, 3, 4, 5], "channels": 16},
    "head": {"name": "semantic", "channels": 8},
}
del SEGMENTER["anchors"]
CLASSIC = {"backbone": {"name": "resnet10"}, "head": {"name": "classic"}}


def make_config(model: dict[str, Any], **sections: Any) -> Config:
    tasks = {"pooled": "classification", "classic": "classification", "semantic": "segmentation"}
    task = tasks.get(model["head"].get("name"), "detection")
    return Config.model_validate({"task": task, "model": model, **sections})


def make_model(model: dict[str, Any], num_classes: int, seed: int) -> Model:
    """A model whose weights all differ, those initialised to 0 or 1 included."""
    torch.manual_seed(seed)
    built = build_model(make_config(model).model, num_classes)
    with torch.no_grad():
        for tensor in built.state_dict().values():
            tensor.add_(0.01 * torch.rand(tensor.shape)) if tensor.is_floating_point() else tensor.fill_(seed)
    return built


def categories(*names: str) -> list[Category]:
    return [Category(10 * label + 1, name) for label, name in enumerate(names)]


def content_of(model: dict[str, Any], classes: list[Category], weights: Model, ema: Model | None = None) -> dict:
    """What ``read_checkpoint`` gives."""
    return {
        "config": config_to_dict(make_config(model)),
        "categories": [category._asdict() for category in classes],
        "model": weights.state_dict(),
        "ema": ema.state_dict() if ema else None,
    }


def state_of(model: Model) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_all_is_said(outcome: Transfer, model: Model, content: dict[str, Any]) -> None:
    """Every tensor of the model and of the checkpoint is in the report, once."""
    lines = re.findall(r"(?m)^(loaded|by class|random|unexpected) +(\S+?)(?:: (.+))?$", outcome.report())
    assert len(lines) == len(outcome.report().splitlines())
    said: dict[str, list[str]] = {"loaded": [], "by class": [], "random": [], "unexpected": []}
    for kind, name, reason in lines:
        said[kind].append(name)
        assert bool(reason) == (kind in ("by class", "random"))
    source = content["ema"] or content["model"]
    own = said["loaded"] + said["by class"] + said["random"]
    assert sorted(own) == sorted(model.state_dict())
    of_source = said["loaded"] + said["by class"] + [name for name in said["random"] if name in source]
    assert sorted(of_source + said["unexpected"]) == sorted(source)


# --- from task to task ------------------------------------------------------------------------------------------------


def test_detector_to_classifier_and_back() -> None:
    first = make_model(DETECTOR, 2, seed=1)
    content = content_of(DETECTOR, categories("ant", "bee"), first)
    second = make_model(POOLED, 3, seed=2)
    before = state_of(second)
    outcome = transfer(second, categories("bee", "cow", "ant"), content, PATH)
    assert_all_is_said(outcome, second, content)
    pyramid = [name for name in first.state_dict() if name.startswith("pyramid.")]
    assert len(pyramid) > 60
    assert outcome.loaded == pyramid
    assert outcome.random == {f"head.classifier.{name}": "not in the checkpoint" for name in ("weight", "bias")}
    assert {name.split(".")[1] for name in outcome.unexpected} == {"cls_tower", "box_tower", "cls_output", "box_output"}
    for name, tensor in second.state_dict().items():
        assert torch.equal(tensor, (first.state_dict() if name in pyramid else before)[name]), name

    third = make_model(DETECTOR, 2, seed=3)
    before = state_of(third)
    content = content_of(POOLED, categories("bee", "cow", "ant"), second)
    outcome = transfer(third, categories("ant", "bee"), content, PATH)
    assert_all_is_said(outcome, third, content)
    assert outcome.unexpected == ["head.classifier.bias", "head.classifier.weight"]
    for name, tensor in third.state_dict().items():
        assert torch.equal(tensor, (first.state_dict() if name in pyramid else before)[name]), name


def test_detector_to_segmenter_and_back() -> None:
    """Their pyramids begin at P3 and P2, so lateral convolutions have other numbers."""
    first = make_model(DETECTOR, 2, seed=1)
    second = make_model(SEGMENTER, 3, seed=2)
    transfer(second, categories("sky", "bee", "ant"), content_of(DETECTOR, categories("ant", "bee"), first), PATH)
    own, there = second.state_dict(), first.state_dict()
    for part in ("weight", "bias"):
        for level in (3, 4, 5):
            here = f"pyramid.fpn.lateral.{level - 2}.{part}"
            assert torch.equal(own[here], there[f"pyramid.fpn.lateral.{level - 3}.{part}"])
    shared = [name for name in own if name in there and ".lateral." not in name]
    assert len(shared) > 60
    assert all(torch.equal(own[name], there[name]) for name in shared)

    third = make_model(DETECTOR, 2, seed=3)
    content = content_of(SEGMENTER, categories("sky", "bee", "ant"), second)
    outcome = transfer(third, categories("ant", "bee"), content, PATH)
    assert {name for name in outcome.random if name.startswith("pyramid.")} == set()
    back = third.state_dict()
    assert all(torch.equal(back[name], there[name]) for name in there if name.startswith("pyramid."))
    assert {"pyramid.fpn.lateral.level2.weight", "pyramid.fpn.output.p2.weight"} <= set(outcome.unexpected)


def test_a_classic_classifier_gives_its_backbone_to_a_detector() -> None:
    first, second = make_model(CLASSIC, 2, seed=1), make_model(DETECTOR, 2, seed=2)
    content = content_of(CLASSIC, categories("ant", "bee"), first)
    outcome = transfer(second, categories("ant", "bee"), content, PATH)
    assert_all_is_said(outcome, second, content)
    assert all(name.startswith("pyramid.backbone.") for name in outcome.loaded)
    assert len(outcome.loaded) == len(content["model"]) - 2
    assert {name.rpartition(".")[0].split(".")[1] for name in outcome.random} >= {"fpn", "cls_output", "box_output"}
    assert outcome.unexpected == ["head.bias", "head.weight"]


def test_average_weights_are_preferred() -> None:
    model, average, other = (make_model(POOLED, 2, seed) for seed in (1, 2, 3))
    transfer(other, categories("ant", "bee"), content_of(POOLED, categories("ant", "bee"), model, average), PATH)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, average.state_dict()[name]), name


# --- classes by name --------------------------------------------------------------------------------------------------

OLD, NEW = categories("ant", "bee", "cow"), categories("cow", "doe", "ant", "elk")
KEPT = {0: 2, 2: 0}  # the labels of cow and ant, new: old


@pytest.mark.parametrize(
    ("kind", "layer", "groups"), [(DETECTOR, "cls_output.", 3), (POOLED, "classifier.", 1), (CLASSIC, "", 1)]
)
def test_rows_of_classes_are_found_by_name(kind: dict[str, Any], layer: str, groups: int) -> None:
    first, second = make_model(kind, 3, seed=1), make_model(kind, 4, seed=2)
    before, content = state_of(second), content_of(kind, OLD, first)
    outcome = transfer(second, NEW, content, PATH)
    assert_all_is_said(outcome, second, content)
    names = [f"head.{layer}{part}" for part in ("weight", "bias")]
    assert outcome.by_class == dict.fromkeys(names, "2 of 4 classes (cow, ant)")
    assert outcome.random == {}
    assert outcome.unexpected == []
    assert "the class layer by name: 2 of 4 classes (cow, ant)" in outcome.summary()
    for name, tensor in second.state_dict().items():
        if name not in names:
            assert torch.equal(tensor, first.state_dict()[name]), name
            continue
        # Rows are grouped by anchor: row = anchor · classes + class.
        for anchor in range(groups):
            for label in range(4):
                own = tensor[anchor * 4 + label]
                if label in KEPT:
                    assert torch.equal(own, first.state_dict()[name][anchor * 3 + KEPT[label]])
                else:
                    assert torch.equal(own, before[name][anchor * 4 + label])


@pytest.mark.parametrize("kind", [DETECTOR, POOLED, CLASSIC], ids=["detector", "pooled", "classic"])
def test_the_same_classes_give_the_same_model(kind: dict[str, Any]) -> None:
    first, second = make_model(kind, 3, seed=1), make_model(kind, 3, seed=2)
    outcome = transfer(second, OLD, content_of(kind, OLD, first), PATH)
    for name, tensor in second.state_dict().items():
        assert torch.equal(tensor, first.state_dict()[name]), name
    assert set(outcome.by_class.values()) == {"3 of 3 classes (ant, bee, cow)"}
    # Ids do not matter: other ids, the same names.
    renumbered = [Category(500 + category.id, category.name) for category in OLD]
    third = make_model(kind, 3, seed=3)
    transfer(third, renumbered, content_of(kind, OLD, first), PATH)
    assert all(torch.equal(tensor, first.state_dict()[name]) for name, tensor in third.state_dict().items())


def test_classes_of_other_names_are_randomly_initialised() -> None:
    first, second = make_model(POOLED, 3, seed=1), make_model(POOLED, 3, seed=2)
    before, content = state_of(second), content_of(POOLED, OLD, first)
    outcome = transfer(second, categories("Ant", "doe", "elk"), content, PATH)
    assert_all_is_said(outcome, second, content)
    assert outcome.random == {f"head.classifier.{part}": "no class has the same name" for part in ("weight", "bias")}
    assert all(torch.equal(second.state_dict()[name], before[name]) for name in outcome.random)


def test_another_number_of_anchors_is_randomly_initialised() -> None:
    fewer = {**DETECTOR, "anchors": {"ratios": [1.0], "scales": [1.0]}}
    first, second = make_model(DETECTOR, 3, seed=1), make_model(fewer, 3, seed=2)
    before, content = state_of(second), content_of(DETECTOR, OLD, first)
    outcome = transfer(second, OLD, content, PATH)
    assert_all_is_said(outcome, second, content)
    assert outcome.random["head.box_output.bias"] == "is [12] in the checkpoint, [4] here"
    # Nine class rows do not fit here, where a cell has one anchor.
    for name in ("head.cls_output.weight", "head.cls_output.bias"):
        assert name in outcome.random
        assert torch.equal(second.state_dict()[name], before[name])


@pytest.mark.parametrize(
    ("change", "is_random"),
    [
        # Biases of the class and box layers would fit, and those of the pyramid's first layers.
        ({"fpn": {"levels": [3, 4, 5], "channels": 24}}, {"cls_tower", "box_tower", "cls_output", "box_output"}),
        ({"head": {"num_convs": 1, "channels": 8}}, {"cls_tower", "box_tower", "cls_output", "box_output"}),
        # Convolutions 0, 2, 4 here, 0, 3, 6 there: number 6 would be another one.
        ({"head": {"num_convs": 4, "norm": "gn"}}, {"cls_tower", "box_tower"}),
        ({"head": {"num_convs": 2}}, {"cls_tower", "box_tower"}),
    ],
    ids=["narrower pyramid", "narrower head", "norms", "longer tower"],
)
def test_a_part_of_the_head_is_taken_whole_or_not_at_all(change: dict[str, Any], is_random: set[str]) -> None:
    first, second = make_model(DETECTOR, 3, seed=1), make_model({**DETECTOR, **change}, 3, seed=2)
    before, content = state_of(second), content_of(DETECTOR, OLD, first)
    outcome = transfer(second, OLD, content, PATH)
    assert_all_is_said(outcome, second, content)
    assert {name.split(".")[1] for name in outcome.random if name.startswith("head.")} == is_random
    for name, tensor in second.state_dict().items():
        if name.startswith("head.") and name.split(".")[1] in is_random:
            assert torch.equal(tensor, before[name]), name
    # The summary names each part once.
    said = outcome.summary()
    assert ("class layer by name" in said) == ("head.cls_output.*" not in said)
    assert said.count("head.cls_output") <= 1
    counts = [int(count) for count in re.findall(r"(?:^|; )(\d+) (?:of|are)", said)]
    assert sum(counts) + len(outcome.by_class) == len(second.state_dict())


def test_the_list_of_classes_in_a_report_is_cut() -> None:
    many = categories(*[f"class {number}" for number in range(12)])
    first, second = make_model(POOLED, 12, seed=1), make_model(POOLED, 12, seed=2)
    outcome = transfer(second, many, content_of(POOLED, many, first), PATH)
    assert set(outcome.by_class.values()) == {
        f"12 of 12 classes ({', '.join(f'class {number}' for number in range(10))}, …)"
    }


def test_the_line_that_sums_it_up() -> None:
    content = content_of(DETECTOR, categories("ant"), make_model(DETECTOR, 1, seed=1))
    model = make_model(POOLED, 1, seed=2)
    outcome = transfer(model, categories("ant"), content, PATH)
    total = len(model.state_dict())
    left = len(content["model"]) - (total - 2)
    groups = "head.box_output.*, head.box_tower.*, head.cls_output.*, head.cls_tower.*"
    expected = f"{total - 2} of {total} tensors loaded; 2 are randomly initialised (head.classifier.*);"
    expected += f" {left} unexpected ({groups})"
    assert outcome.summary() == expected


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "channels"),
    [({"name": "mobilenet_v3_small"}, 16), ({"name": "timm:convnext_atto"}, 24)],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_another_backbone_is_refused(backbone: dict[str, Any], channels: int) -> None:
    content = content_of(DETECTOR, categories("ant"), make_model(DETECTOR, 1, seed=1))
    model = make_model({**POOLED, "backbone": backbone, "fpn": {"levels": [3, 4, 5], "channels": channels}}, 1, seed=2)
    with pytest.raises(WeightsError) as caught:
        transfer(model, categories("ant"), content, PATH)
    expected = f"{PATH}: nothing of its backbone (resnet10) fits this model; use the same model.backbone"
    assert str(caught.value) == expected


def test_two_branches_are_not_one() -> None:
    two = {"pyramid": {"branches": ["resnet10", "resnet10"]}, "fpn": POOLED["fpn"], "head": POOLED["head"]}
    content = content_of(two, categories("ant"), make_model(two, 1, seed=1))
    with pytest.raises(WeightsError, match=r"nothing of its backbone \(resnet10 \+ resnet10\) fits"):
        transfer(make_model(POOLED, 1, seed=2), categories("ant"), content, PATH)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A detector's, on resnet10, with its own normalise.std."""
    path = tmp_path / "best.pt"
    config = make_config({**DETECTOR, "normalise": {"std": [1.0, 2.0, 4.0]}})
    save_checkpoint(path, config, categories("ant"), {"model": make_model(DETECTOR, 1, 1).state_dict(), "ema": None})
    return path


@pytest.mark.parametrize(
    ("section", "is_refused"),
    [
        ({}, False),  # random tensors are reported, and train
        ({"norm": "frozen_bn"}, True),
        ({"freeze_at": 2}, True),
        ({"weights": "IMAGENET1K_V1"}, True),
    ],
    ids=str,
)
def test_a_backbone_that_counts_on_weights_does_not_stay_random(
    section: dict[str, Any], is_refused: bool, checkpoint: Path
) -> None:
    # resnet18 has two blocks per stage, resnet10 has one.
    config = make_config({**POOLED, "weights": str(checkpoint), "backbone": {"name": "resnet18", **section}})
    model = build_model(config.model, 1)
    if not is_refused:
        lines, report = load_start(model, config, categories("ant"), open_start(config))
        assert "are randomly initialised (pyramid.backbone.*" in lines[0]
        assert "random     pyramid.backbone.body.layer1.1.conv1.weight: not in the checkpoint\n" in report
        return
    with pytest.raises(
        WeightsError, match=r"layer1\.1\.\S+ and \d+ more tensors of the backbone are not in it"
    ) as caught:
        load_start(model, config, categories("ant"), open_start(config))
    assert str(caught.value).startswith(f"{checkpoint}: ")
    assert "would stay random; use the checkpoint's model.backbone" in str(caught.value)


@pytest.mark.parametrize("section", [{"norm": "frozen_bn"}, {"freeze_at": 5}, {"weights": "IMAGENET1K_V1"}], ids=str)
def test_a_complete_backbone_may_be_frozen(section: dict[str, Any], checkpoint: Path) -> None:
    # The weights that the config names are not even looked for.
    config = make_config({**POOLED, "weights": str(checkpoint), "backbone": {"name": "resnet10", **section}})
    start = open_start(config)
    config, _ = begin_normalise(config, start, str(checkpoint))
    model = build_model(config.model, 1)
    lines, _ = load_start(model, config, categories("ant"), start)
    assert len(lines) == 1
    assert lines[0].startswith(f"from {checkpoint} (detection): ")
    loaded = torch.load(checkpoint, weights_only=True)["model"]
    own = model.pyramid.state_dict(prefix="pyramid.")
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in own.items())


def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(make_model(POOLED, 1, 1).state_dict(), path)
    config = make_config({**POOLED, "weights": str(path)})
    with pytest.raises(WeightsError, match=f"{path}: "):
        load_start(build_model(config.model, 1), config, categories("ant"), open_start(config))


# --- whole runs -------------------------------------------------------------------------------------------------------


def of_colors(colors: Path, model: dict[str, Any], **train: Any) -> Config:
    """One step on generated images."""
    data = {split: {"images": f"{colors}/{split}"} for split in ("train", "val")}
    data |= {"workers": 0, "crop": {"size": 32, "scale": [0.5, 1.0]}}
    return make_config(model, data=data, train={"batch_size": 4, "steps": 1, **train}, seed=5)


@pytest.mark.parametrize("section", [{"norm": "frozen_bn"}, {"freeze_at": 3}], ids=str)
def test_freezing_what_is_random_is_refused(
    section: dict[str, Any], tmp_path: Path, colors: Path, checkpoint: Path
) -> None:
    model = {**POOLED, "backbone": {"name": "resnet10", **section}}
    key, value = next(iter(section.items()))
    run = RunFolder(tmp_path / "run")
    said = rf"model\.backbone\.{key}: {value} freezes random weights of resnet10.*set weights, give .*--init-from"
    with pytest.raises(ConfigError, match=said):
        fit(of_colors(colors, model), run, CPU)
    assert not run.path.exists()

    assert fit(of_colors(colors, {**model, "weights": str(checkpoint)}), run, CPU)
    saved, before = (torch.load(path, weights_only=True)["model"] for path in (run.last, checkpoint))
    norms = [name for name in before if ".bn1." in name and "pyramid" in name and "num_batches" not in name]
    frozen = norms if "norm" in section else [name for name in before if ".body.layer1." in name]
    assert len(frozen) > 5
    assert all(torch.equal(saved[name], before[name]) for name in frozen)
    assert not torch.equal(*(content["pyramid.backbone.body.layer4.0.conv1.weight"] for content in (saved, before)))


def test_a_checkpoint_is_refused_as_backbone_weights(tmp_path: Path, colors: Path, checkpoint: Path) -> None:
    config = of_colors(colors, {**POOLED, "backbone": {"name": "resnet10", "weights": str(checkpoint)}})
    run = RunFolder(tmp_path / "run")
    with pytest.raises(WeightsError, match=f"{checkpoint}: is a training checkpoint; start from it with --init-from"):
        fit(config, run, CPU)
    assert not run.path.exists()


def test_the_report_is_in_the_runs_folder(
    tmp_path: Path, colors: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {**POOLED, "weights": str(checkpoint)}
    run = RunFolder(tmp_path / "run")
    assert fit(of_colors(colors, model), run, CPU)
    report = (run.path / "transfer.txt").read_text(encoding="utf-8").splitlines()
    assert len(report) == len(set(report)) > 80
    assert "loaded     pyramid.backbone.body.conv1.weight" in report
    assert "random     head.classifier.weight: not in the checkpoint" in report
    assert "unexpected head.cls_output.bias" in report

    # A null normalisation is the start checkpoint's, and is saved in the run's own.
    said = "normalised by mean 123.675, 116.28, 103.53 and std 1, 2, 4 of values 0..255: the checkpoint's\n"
    assert said in capsys.readouterr().err
    assert checkpoint_config(read_checkpoint(run.last), run.last).model.std == [1.0, 2.0, 4.0]
    assert detector.load(run.last).model.std.flatten().tolist() == [1.0, 2.0, 4.0]

    # Resumed, the run continues from its own last.pt and no longer needs the start checkpoint.
    checkpoint.unlink()
    assert fit(of_colors(colors, model, steps=2), run, CPU, resume=True)
    assert (run.path / "transfer.txt").read_text(encoding="utf-8").splitlines() == report
    assert torch.load(run.last, weights_only=True)["step"] == 2
    assert said in capsys.readouterr().err
    assert checkpoint_config(read_checkpoint(run.last), run.last).model.std == [1.0, 2.0, 4.0]

    plain = RunFolder(tmp_path / "plain")
    assert fit(of_colors(colors, POOLED), plain, CPU)
    assert not (plain.path / "transfer.txt").exists()


def test_a_run_begins_with_the_weights_it_was_given(tmp_path: Path, colors: Path, checkpoint: Path) -> None:
    # A tiny learning rate leaves them unchanged.
    config = of_colors(colors, {**POOLED, "weights": str(checkpoint)}, optimizer={"lr": 1e-12})
    run = RunFolder(tmp_path / "run")
    assert fit(config, run, CPU)
    saved, given = (torch.load(path, weights_only=True)["model"] for path in (run.last, checkpoint))
    parameters = [name for name in given if name in saved and name.endswith(("weight", "bias"))]
    assert len(parameters) > 40
    for name in parameters:
        torch.testing.assert_close(saved[name], given[name], rtol=0, atol=1e-6)


def test_resuming_the_other_task_is_refused(tmp_path: Path, colors: Path, shapes: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert fit(of_colors(colors, POOLED), run, CPU)
    data = {
        split: {"annotations": f"{shapes}/annotations/{split}.json", "images": f"{shapes}/images"}
        for split in ("train", "val")
    }
    config = make_config(DETECTOR, data={**data, "workers": 0}, train={"batch_size": 4, "steps": 2}, seed=5)
    with pytest.raises(ConfigError) as caught:
        fit(config, run, CPU, resume=True)
    said = f"{run.last}: task was classification, is detection; resume with the same, or start another run with --name"
    assert str(caught.value) == f"{said} (--init-from starts a task from the other's weights)"
