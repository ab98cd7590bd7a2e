"""The config: every mistake is one clear line, and a resolved config is read back equal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from detector.config.loader import (
    CONFIG_FOLDERS,
    apply_overrides,
    config_from_dict,
    config_to_dict,
    find_config,
    load_config,
    save_config,
)
from detector.config.schema import AnchorConfig, BackboneConfig, Config, ModelConfig
from detector.errors import ConfigError

NAMES = sorted(path.name for path in CONFIG_FOLDERS[0].glob("*.yaml"))


def write(folder: Path, text: str, name: str = "x.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def error_of(path: Path | str, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


# --- valid configs ----------------------------------------------------------------------------------------------------


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == Config()


def test_values_land_in_their_section_and_nothing_else_moves(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "seed: 7\nmodel: {matcher: {positive: 0.6}}\n"))
    assert config.seed == 7
    assert config.model.matcher.positive == 0.6
    tree, default = config_to_dict(config), config_to_dict(Config())
    tree["seed"], tree["model"]["matcher"]["positive"] = 0, 0.5
    assert tree == default


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().model.matcher.positive = 0.9


def test_anchor_sizes_by_level_by_hand() -> None:
    config = AnchorConfig.model_validate({"levels": {3: {"base_size": 20, "ratios": [1, 2, 3]}}})
    # 4 strides: 4 · 2^5 = 128 px on level 5; an override is in pixels: 20.
    assert (config.at_level(5).base_size, config.at_level(5).ratios) == (128, [0.5, 1.0, 2.0])
    assert (config.at_level(3).base_size, config.at_level(3).ratios) == (20 * 8, [1.0, 2.0, 3.0])
    assert config.at_level(3).scales == config.scales
    assert config.per_cell == 9


def test_importing_the_config_imports_no_torch() -> None:
    code = "import sys, detector.config.loader; print(detector.config.loader.Config().seed, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "False"]


# --- the package's own configs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_config_of_the_package_loads_by_name_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(name) != Config()


@pytest.mark.parametrize("name", NAMES)
def test_a_config_of_the_package_opens_with_its_command(name: str) -> None:
    text = (CONFIG_FOLDERS[0] / name).read_text(encoding="utf-8")
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert text.startswith("# ")
    commands = (f"--config {name}", "make quickstart", "detector quickstart")
    assert any(command in line for command in commands for line in head)


def test_a_path_goes_before_the_name_of_a_packaged_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(NAMES[0]) == CONFIG_FOLDERS[0] / NAMES[0]
    write(tmp_path, "seed: 5", NAMES[0])
    assert load_config(NAMES[0]).seed == 5


# --- mistakes in a file -----------------------------------------------------------------------------------------------

MISTAKES = {  # text: (line, message)
    "model:\n  backbone:\n    nmae: resnet18\n": (3, "model.backbone.nmae: unknown key; did you mean 'name'?"),
    "seed: 1\nzzz: 2\n": (2, "zzz: unknown key; known keys: task, seed, data, model, train, eval"),
    "model:\n  anchors:\n    levels:\n      3: {ratois: [1]}\n": (
        4,
        "model.anchors.levels.3.ratois: unknown key; did you mean 'ratios'?",
    ),
    "train:\n  epochs: twelve\n": (2, "train.epochs: must be a whole number"),
    "train:\n  epochs: 1.5\n": (2, "train.epochs: must be a whole number"),
    "train:\n  epochs: yes": (2, "train.epochs: must be a number; it is true"),
    "train:\n  steps: yes": (2, "train.steps: must be a number; it is true"),
    "data: {resize: {short: [64, yes]}}": (1, "data.resize.short: must be a number; it is [64, true]"),
    "data: {class_weights: {cat: no}}": (1, "data.class_weights: must be a number; it is {'cat': false}"),
    "data: {augment: null}": (1, "data.augment: must be a section, with keys such as horizontal_flip, vertical_flip, "),
    "data: {resize: {short: []}}": (1, "data.resize.short: must have at least 1 value; it is []"),
    "train: {epochs: 0}": (1, "train.epochs: must be greater than or equal to 1; it is 0"),
    "data:\n\n  augment: {horizontal_flip: 1.5}": (
        3,
        "data.augment.horizontal_flip: must be less than or equal to 1; it is 1.5",
    ),
    "model: {loss: {gamma: .nan}}": (1, "model.loss.gamma: must be a finite number; it is nan"),
    "train: {clip_norm: .inf}": (1, "train.clip_norm: must be a finite number; it is inf"),
    "train:\n  optimizer: {name: sdg}": (2, "train.optimizer.name: must be 'sgd' or 'adamw'; it is 'sdg'"),
    "data:\n  resize:\n    short: [800, -1]\n": (
        3,
        "data.resize.short.1: must be greater than or equal to 1; it is -1",
    ),
    "data: [1]": (1, "data: must be a section, with keys such as train, val, format; it is [1]"),
    "model:\n  fpn: {levels: [3, 5]}": (2, "model.fpn.levels: [3, 5] must be contiguous"),
    "model: {fpn: {levels: [5, 4, 3]}}": (1, "model.fpn.levels: [5, 4, 3] must be contiguous"),
    "model: {fpn: {levels: [6, 7]}}": (1, "model.fpn.levels: [6, 7] must be contiguous and start at 2 to 5"),
    # 3 ratios × 3 scales = 9 elsewhere; 1 × 3 = 3 here.
    "model:\n  anchors:\n    levels: {4: {ratios: [1]}}": (
        3,
        "model.anchors.levels.4: 3 anchors per cell where the others have 9",
    ),
    "model: {fpn: {levels: [3, 4]}, anchors: {levels: {5: {base_size: 9}}}}": (
        1,
        "model.anchors.levels: 5 is not in fpn.levels [3, 4]",
    ),
    "model: {matcher: {positive: 0.3}}": (1, "model.matcher.negative: 0.4 must not be greater than positive: 0.3"),
    "data: {augment: {scale_jitter: [2, 0.5]}}": (1, "data.augment.scale_jitter: the lower bound comes first"),
    "data: {augment: {scale_jitter: [2]}}": (1, "data.augment.scale_jitter: "),
    "data:\n  augment: {transforms: [{p: 1}]}": (2, "data.augment.transforms: each needs a name, as in"),
    "data: {augment: {transforms: GaussNoise}}": (1, "data.augment.transforms: must be a list, as [a, b]"),
    "model:\n  backbone: {freeze_at: 1}": (2, "model.backbone.freeze_at: must be 0, 2, 3, 4 or 5; it is 1"),
    "model:\n  backbone: resnet18": (
        2,
        "model.backbone: must be a section, with keys such as name, weights, norm; it",
    ),
    "model:\n  backbone: null\n": (
        2,
        "model.backbone: is null, and pyramid.branches is empty; set one of them",
    ),
    "model:\n  backbone: null\n  pyramid: {branches: []}\n": (
        2,
        "model.backbone: is null, and pyramid.branches is empty",
    ),
    "model:\n  pyramid:\n    branches: [vgg11]\n": (
        3,
        "model.pyramid.branches: there is only one; a single network is model.backbone",
    ),
    "model:\n  backbone: {name: resnet18}\n  pyramid: {branches: [vgg11, resnet10]}\n": (
        2,
        "model.backbone: pyramid.branches name the networks; set backbone: null, or remove branches",
    ),
    "model:\n  pyramid:\n    branches: [vgg11, 10]\n": (
        3,
        "model.pyramid.branches.1: must be a section, with keys such as name",
    ),
    "model:\n  pyramid:\n    branches: vgg11\n": (3, "model.pyramid.branches: must be a list, as [a, b]"),
    "model:\n  pyramid:\n    branches:\n    - vgg11\n    - {name: resnet10, norm: ln}\n": (
        3,
        "model.pyramid.branches.1.norm: must be 'bn', 'frozen_bn' or 'sync_bn'; it is 'ln'",
    ),
    "model:\n  pyramid: {branches: [vgg11, resnet10], fuse: max}\n": (
        2,
        "model.pyramid.fuse: must be 'sum', 'mean' or 'concat'; it is 'max'",
    ),
    "task: classification\nmodel:\n  pyramid: {branches: [vgg11, resnet10]}\n  head: {name: classic}\n": (
        4,
        "model.head.name: classic is one network's own classifier; with pyramid.branches use pooled",
    ),
    "model: {in_channels: 0}": (1, "model.in_channels: must be greater than or equal to 1; it is 0"),
    "model:\n  in_channels: 1\n  normalise: {mean: [1, 2, 3]}\n": (
        3,
        "model.normalise.mean: 3 values for 1 in_channels",
    ),
    "model:\n  in_channels: 4\n  normalise: {mean: [1, 2, 3, 4], std: [1, 2]}\n": (
        3,
        "model.normalise.std: 2 values for 4 in_channels",
    ),
    "model: {normalise: {mean: []}}": (1, "model.normalise.mean: 0 values for 3 in_channels"),
    "model:\n  normalise: {std: [1, 2, 0]}": (2, "model.normalise.std.2: must be greater than 0; it is 0"),
    "model: {fpn: {norm: ln}}": (1, "model.fpn.norm: must be 'none', 'bn' or 'gn'; it is 'ln'"),
    "model: {fpn: {activation: gelu}}": (1, "model.fpn.activation: must be 'none', 'relu' or 'silu'"),
    "model: {fpn: {upsample: bicubic}}": (1, "model.fpn.upsample: must be 'nearest', 'bilinear' or 'deconv'"),
    "model:\n  head:\n    name: pooled\n    dropout: 1\n": (
        4,
        "model.head.dropout: must be less than 1; it is 1",
    ),
    "model:\n  head:\n    name: pooled\n    hidden: [8, 0]\n": (
        4,
        "model.head.hidden.1: must be greater than or equal to 1; it is 0",
    ),
    "model: {head: {name: pooled, pool: lp}}": (
        1,
        "model.head.pool: must be 'avg', 'max' or 'gem'; it is 'lp'",
    ),
    "model: {head: {name: pooled, fuse: sum}}": (1, "model.head.fuse: must be 'mean', 'concat' or 'learned'"),
    "seed: 1\ntrain: {epochs: 1}\nseed: 2\n": (3, "seed: is duplicated, first at "),
    "model:\n  head:\n    prior: 0.1\n    norm: gn\n    prior: 0.2\n": (
        5,
        "model.head.prior: is duplicated, first at ",
    ),
    "seed: 1\ndata: [\n": (3, "not valid YAML: "),
    "seed: 1\n\tdata: 2\n": (2, "not valid YAML: "),
    "? [1, 2]\n: 3\n": (1, "not valid YAML: "),
    "base: nowhere.yaml": (1, "base: "),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_named_with_its_line(text: str, tmp_path: Path) -> None:
    line, message = MISTAKES[text]
    path = write(tmp_path, text)
    error = error_of(path)
    assert error.startswith(f"{path}:{line}: {message}")
    assert len(error.splitlines()) == 1


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    text = "seed: -1\nmodel:\n  matcher: {positive: 2, low_quality: maybe}\ntrain:\n  optimiser: {}\n"
    path = write(tmp_path, text)
    locations = [line.removeprefix(f"{path}:").split(": ")[:2] for line in error_of(path).splitlines()]
    assert sorted(locations) == [
        ["1", "seed"],
        ["3", "model.matcher.low_quality"],
        ["3", "model.matcher.positive"],
        ["5", "train.optimiser"],
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"- 1\n", "holds a list; a config is a mapping of sections"),
        (b"seed", "holds a text; a config is a mapping of sections"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"seed: 2026-13-40\n", "not valid YAML: month must be in 1..12"),
    ],
)
def test_a_file_that_is_not_a_config(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(data)
    assert error_of(path).startswith(f"{path}: {message}")


def test_an_alias_inside_itself_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "data: &data {train: *data}\n")
    assert error_of(path).startswith(f"{path}")


def test_a_missing_file_names_the_nearest() -> None:
    near = "retinanet_r50_fnp.yaml: no such config file; did you mean retinanet_r50_fpn.yaml?"
    assert error_of("retinanet_r50_fnp.yaml") == near
    assert error_of("zzz.yaml") == f"zzz.yaml: no such config file; the package has {', '.join(NAMES)}"


@pytest.mark.parametrize(("missing", "said"), [("tests", "is a folder; give a file"), ("", "no such config file")])
def test_a_folder_is_not_a_config(missing: str, said: str) -> None:
    assert said in error_of(missing)


@settings(max_examples=150)
@given(text=st.text(st.sampled_from("ab:-[]{}?&*!#|>'\"%@`,<= \n\t10.~\\_"), max_size=40))
def test_no_text_ends_in_anything_but_a_config_error(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write(tmp_path_factory.getbasetemp(), text, "any.yaml")
    try:
        config = load_config(path)
    except ConfigError as error:
        assert str(error).startswith(str(path))
    else:
        assert config == Config()


# --- keys without effect ----------------------------------------------------------------------------------------------

SEMANTIC = "task: segmentation\nmodel:\n  head: {name: semantic}\n"
POOLED = "task: classification\nmodel:\n  head: {name: pooled}\n"
CLASSIC = "task: classification\nmodel:\n  head: {name: classic}\n"
WITHOUT_EFFECT = [  # text, line, key, what reads it
    ("model:\n  head: {dropout: 0.5}\n", 2, "model.head.dropout", "head pooled or semantic"),
    ("model:\n  head:\n    name: retina\n    pool: gem\n", 4, "model.head.pool", "head pooled"),
    ("model:\n  head: {fuse: mean}\n", 2, "model.head.fuse", "head pooled"),
    ("model:\n  head: {hidden: [64]}\n", 2, "model.head.hidden", "head pooled"),
    (f"{CLASSIC[:-2]}, dropout: 0.5}}\n", 3, "model.head.dropout", "head pooled or semantic"),
    (f"{POOLED[:-2]}, num_convs: 2}}\n", 3, "model.head.num_convs", "head retina"),
    (f"{POOLED[:-2]}, channels: 8}}\n", 3, "model.head.channels", "head retina or semantic"),
    (f"{POOLED[:-2]}, norm: gn}}\n", 3, "model.head.norm", "head retina"),
    (f"{CLASSIC[:-2]}, prior: 0.1}}\n", 3, "model.head.prior", "head retina"),
    (f"{CLASSIC}  fpn: {{channels: 64}}\n", 4, "model.fpn", "heads on a pyramid"),
    (f"{POOLED}data:\n  resize: {{short: [64]}}\n", 5, "data.resize", "task detection or segmentation"),
    (f"{POOLED}data:\n  invalid_boxes: drop\n", 5, "data.invalid_boxes", "task detection"),
    (
        f"{POOLED}data: {{augment: {{scale_jitter: [1, 2]}}}}\n",
        4,
        "data.augment.scale_jitter",
        "task detection or segmentation",
    ),
    (f"{POOLED}data: {{augment: {{min_visibility: 0}}}}\n", 4, "data.augment.min_visibility", "task detection"),
    (f"{POOLED}  anchors: {{ratios: [1]}}\n", 4, "model.anchors", "task detection"),
    (f"{POOLED}  matcher: {{positive: 0.6}}\n", 4, "model.matcher", "task detection"),
    (f"{POOLED}  loss:\n    gamma: 1\n", 5, "model.loss.gamma", "task detection"),
    (f"{POOLED}  loss:\n    box: giou\n", 5, "model.loss.box", "task detection"),
    (f"{POOLED}  predict: {{nms_threshold: 0.6}}\n", 4, "model.predict.nms_threshold", "task detection"),
    (f"{POOLED}  predict: {{topk: 10}}\n", 4, "model.predict.topk", "task detection"),
    ("data: {crop: {size: 96}}\n", 1, "data.crop", "task classification"),
    ("data:\n  class_weights: balanced\n", 2, "data.class_weights", "task classification or segmentation"),
    ("data:\n  augment:\n    cutmix: 0.2\n", 3, "data.augment.cutmix", "task classification or segmentation"),
    ("data:\n  augment:\n    cutmix: 1\n", 3, "data.augment.cutmix", "task classification or segmentation"),
    (
        "model:\n  loss: {label_smoothing: 0.1}\n",
        2,
        "model.loss.label_smoothing",
        "task classification or segmentation",
    ),
    ("model:\n  predict: {classes: 3}\n", 2, "model.predict.classes", "task classification"),
    ("model:\n  multi_label: true\n", 2, "model.multi_label", "task classification"),
    (f"{SEMANTIC}data: {{augment: {{mixup: 8}}}}\n", 4, "data.augment.mixup", "task detection or classification"),
    (f"{SEMANTIC}  predict: {{topk: 10}}\n", 4, "model.predict.topk", "task detection"),
    ("data: {masks: {ignore_index: 11}}\n", 1, "data.masks", "task segmentation"),
]


@pytest.mark.parametrize(("text", "line", "key", "user"), WITHOUT_EFFECT)
def test_a_key_without_effect_is_refused(text: str, line: int, key: str, user: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    assert error_of(path) == f"{path}:{line}: {key}: has no effect here, it is for {user}; remove it"


def test_all_keys_without_effect_are_reported_together(tmp_path: Path) -> None:
    base = write(tmp_path, "data: {resize: {short: [64]}}\n", "base.yaml")
    path = write(tmp_path, f"base: base.yaml\n{POOLED}  predict: {{topk: 10}}\n")
    assert set(error_of(path, ("model.head.prior=0.1",)).splitlines()) == {
        f"{base}:1: data.resize: has no effect here, it is for task detection or segmentation; remove it",
        f"{path}:5: model.predict.topk: has no effect here, it is for task detection; remove it",
        "command line: model.head.prior: has no effect here, it is for head retina; remove it",
    }


@pytest.mark.parametrize(
    "text",
    [
        "model: {head: {name: retina, num_convs: 2, prior: 0.1}, anchors: {ratios: [1]}, predict: {topk: 10}}\n",
        "data: {resize: {short: [64]}, val_share: 0.2, invalid_boxes: clip, augment: {scale_jitter: [1, 2]}}\n",
        f"{POOLED[:-2]}, pool: gem, fuse: learned, hidden: [8], dropout: 0.5}}\n  fpn: {{channels: 64}}\n",
        f"{CLASSIC}  backbone: {{name: vgg16, freeze_at: 2}}\n  loss: {{label_smoothing: 0.1}}\n  multi_label: true\n",
        f"{POOLED}data: {{val_share: 0.2, class_weights: {{cat: 2}}, crop: {{size: 96}}, augment: {{mixup: 0.2}}}}\n",
    ],
)
def test_keys_with_an_effect_are_accepted(text: str, tmp_path: Path) -> None:
    assert load_config(write(tmp_path, text)) != Config()


def test_defaults_of_other_tasks_may_be_written(tmp_path: Path) -> None:
    """A resolved config has every key."""
    text = "model: {head: {dropout: 0, pool: avg}, multi_label: false}\ndata: {crop: {size: 224}, val_share: null}\n"
    assert load_config(write(tmp_path, text)) == Config()


# --- networks and channels --------------------------------------------------------------------------------------------


def test_branches_are_names_or_sections(tmp_path: Path) -> None:
    branches = "[vgg11_bn, {name: resnet18, weights: IMAGENET1K_V1, freeze_at: 2, norm: frozen_bn}, {}]"
    path = write(tmp_path, f"model:\n  pyramid: {{branches: {branches}, fuse: concat}}\n")
    empty = write(tmp_path, "", "empty.yaml")
    for config in (load_config(path), load_config(empty, [f"model.pyramid.branches={branches}"])):
        assert config.model.backbone is None
        assert config.model.backbones == [
            BackboneConfig(name="vgg11_bn"),
            BackboneConfig(name="resnet18", weights="IMAGENET1K_V1", freeze_at=2, norm="frozen_bn"),
            BackboneConfig(),
        ]
    assert load_config(path, ["model.backbone=null"]).model.pyramid.fuse == "concat"


def test_branches_replace_the_backbone_of_a_base(tmp_path: Path) -> None:
    write(tmp_path, "model: {backbone: {name: resnet18}}", "base.yaml")
    branches = "pyramid: {branches: [vgg11, resnet10]}"
    own = write(tmp_path, f"base: base.yaml\nmodel: {{backbone: null, {branches}}}")
    assert [backbone.name for backbone in load_config(own).model.backbones] == ["vgg11", "resnet10"]
    assert "set backbone: null" in error_of(write(tmp_path, f"base: base.yaml\nmodel: {{{branches}}}"))


def test_one_backbone_is_all_of_them() -> None:
    assert ModelConfig().backbones == [BackboneConfig()]


@pytest.mark.parametrize(
    ("model", "mean", "std"),
    [
        ({}, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        # 343.485 / 3 and 172.89 / 3
        ({"in_channels": 1}, [114.495], [57.63]),
        ({"in_channels": 4}, [114.495] * 4, [57.63] * 4),
        ({"in_channels": 2, "normalise": {"mean": [1, 2]}}, [1, 2], [57.63, 57.63]),
        ({"in_channels": 2, "normalise": {"std": [1, 2]}}, [114.495, 114.495], [1, 2]),
        ({"normalise": {"mean": [0, 0, 0], "std": [1, 1, 1]}}, [0, 0, 0], [1, 1, 1]),
    ],
)
def test_mean_and_deviation_follow_the_channels(model: dict[str, Any], mean: list[float], std: list[float]) -> None:
    config = ModelConfig.model_validate(model)
    assert config.mean == pytest.approx(mean)
    assert config.std == pytest.approx(std)


# --- base -------------------------------------------------------------------------------------------------------------


def test_own_keys_win_over_the_base_key_by_key(tmp_path: Path) -> None:
    write(tmp_path, "seed: 3\nmodel: {head: {num_convs: 2, norm: gn}, fpn: {levels: [3, 4, 5]}}\n", "base.yaml")
    own = write(tmp_path, "base: base.yaml\nmodel: {head: {norm: none}, fpn: {levels: [2, 3]}}\n")
    config = load_config(own)
    assert (config.seed, config.model.head.num_convs, config.model.head.norm) == (3, 2, "none")
    assert config.model.fpn.levels == [2, 3]  # a list is one value


def test_a_base_is_looked_up_beside_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    write(tmp_path, "seed: 3", "base.yaml")
    write(tmp_path, "base: base.yaml")
    assert load_config("../x.yaml").seed == 3


def test_mistakes_name_the_file_they_are_in(tmp_path: Path) -> None:
    base = write(tmp_path, "seed: 3\nmodel: {head: {num_cnvs: 2}}\n", "base.yaml")
    own = write(tmp_path, "base: base.yaml\n\nmodel:\n  head: {nrom: gn}\nseed: -1\n")
    assert sorted(error_of(own).splitlines()) == sorted(
        [
            f"{base}:2: model.head.num_cnvs: unknown key; did you mean 'num_convs'?",
            f"{own}:4: model.head.nrom: unknown key; did you mean 'norm'?",
            f"{own}:5: seed: must be greater than or equal to 0; it is -1",
        ]
    )


def test_a_base_has_no_base(tmp_path: Path) -> None:
    write(tmp_path, "seed: 1", "first.yaml")
    base = write(tmp_path, "seed: 2\nbase: first.yaml\n", "base.yaml")
    own = write(tmp_path, "base: base.yaml\n")
    expected = f"{base}:2: base: {own} builds on this file; a base cannot have a base"
    assert error_of(own) == f"{expected}: copy the keys of first.yaml into one of them"


# --- overrides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "keys", "value"),
    [
        ("model.matcher.positive=0.6", "model.matcher.positive", 0.6),
        ("train.optimizer.lr=1e-3", "train.optimizer.lr", 0.001),  # PyYAML reads 1e-3 as a string
        ("train.clip_norm=null", "train.clip_norm", None),
        ("data.augment.scale_jitter=[0.5, 2]", "data.augment.scale_jitter", [0.5, 2.0]),
        (
            "data.augment.transforms=[{name: Blur, blur_limit: [3, 5], p: 0.1}]",
            "data.augment.transforms",
            [{"name": "Blur", "blur_limit": [3, 5], "p": 0.1}],
        ),
        ("data.train.images=a=b c/ö", "data.train.images", "a=b c/ö"),
        ("data.resize={short: [64], long: 96}", "data.resize.short", [64]),
        ("data.resize={short: [64], long: 96}", "data.resize.long", 96),
        ("model.anchors.levels.4.base_size=30", "model.anchors.levels", {"4": {"base_size": 30.0}}),
    ],
)
def test_an_override_is_read_as_yaml(override: str, keys: str, value: Any, tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\ntrain: {clip_norm: 1.0}\n")
    for config in (load_config(path, [override]), apply_overrides(load_config(path), [override], "x.pt")):
        read: Any = config.model_dump(mode="json", exclude_none=value is not None)
        for key in keys.split("."):
            read = read[key]
        assert read == value
        assert config.seed == 1


def test_images_can_be_added_to_a_path_of_annotations(tmp_path: Path) -> None:
    path = write(tmp_path, "data: {train: {annotations: old.json}, val: {annotations: old_val.json}}")
    added = ["data.train.images=images", "data.val=val.csv", "data.val.images=more"]
    data = load_config(path, ["data.train=boxes.csv", *added]).data
    assert (data.train.annotations, data.train.images) == ("boxes.csv", "images")
    assert (data.val.annotations, data.val.images) == ("val.csv", "more")
    held_back = load_config(path, ["data.train=boxes.csv", added[0], "data.val_share=0.2"]).data
    assert (held_back.train.images, held_back.val.annotations) == ("images", None)  # the file's val is of other data


def test_the_last_override_wins_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\ntrain: {epochs: 3}")
    config = load_config(path, ["seed=2", "train.epochs=4", "seed=5"])
    assert (config.seed, config.train.epochs) == (5, 4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "seed: an override is written key=value"),
        ("=3", "=3: an override is written key=value"),
        ("seed=[1", "seed=[1: the value is not valid YAML"),
        ("seed=2026-13-40", "seed=2026-13-40: the value is not valid YAML"),
        ("seed.x=1", "seed.x: seed is 1, not a section; set seed itself"),
        ("train.epochs.x.y=1", "train.epochs.x.y: train.epochs is 3, not a section; set train.epochs itself"),
        ("model.matcher.positve=1", "model.matcher.positve: unknown key; did you mean 'positive'?"),
        ("modle.matcher.positive=1", "modle: unknown key; did you mean 'model'?"),
        ("model.matcher.positive=2", "model.matcher.positive: must be less than or equal to 1; it is 2"),
        ("train.epochs=", "train.epochs: must be a whole number; it is null"),
        ("data.resize.short=96", "data.resize.short: must be a list, as [96]; it is 96"),
        ("data.resize.fixed=96", "data.resize.fixed: must be a list, as [96, 96]; it is 96"),
        ("data.classes=[a, a]", "data.classes: 'a' is duplicated; keep one"),
        ("data.augment.scale_jitter=[2, 1]", "data.augment.scale_jitter: the lower bound comes first"),
    ],
)
def test_a_mistake_in_an_override_names_the_command_line(override: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\ntrain: {epochs: 3}\n")
    assert error_of(path, (override,)).startswith(f"command line: {message}")


def test_a_mistake_in_a_checkpoint_names_it() -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(config_to_dict(Config()) | {"speed": 1}, "runs/x/last.pt")
    assert str(caught.value).startswith("runs/x/last.pt: speed: unknown key; did you mean 'seed'?")


def test_an_override_leaves_the_other_keys_of_its_level(tmp_path: Path) -> None:
    # A YAML file has the level as a number, the command line as text.
    path = write(tmp_path, "model: {anchors: {levels: {3: {base_size: 30, ratios: [1, 2, 3]}}}}")
    shapes = load_config(path, ["model.anchors.levels.3.base_size=20"]).model.anchors.levels[3]
    assert (shapes.base_size, shapes.ratios) == (20.0, [1.0, 2.0, 3.0])


# --- round trips ------------------------------------------------------------------------------------------------------


def check_round_trip(config: Config, path: Path) -> None:
    tree = config_to_dict(config)
    assert yaml.safe_load(yaml.safe_dump(tree)) == tree  # plain values, as YAML and checkpoints store them
    assert config_from_dict(tree, "x") == config
    save_config(config, path)
    assert load_config(path) == config


@pytest.mark.parametrize(
    "text",
    [
        f"{POOLED}  in_channels: 4\n  pyramid: {{branches: [vgg11, {{name: resnet10, freeze_at: 2}}], fuse: mean}}\n",
        f"{POOLED[:-2]}, hidden: [8, 4], pool: gem, fuse: learned}}\n  fpn: {{norm: gn, upsample: deconv}}\n",
        f"{CLASSIC}data: {{class_weights: {{'1': 2, ü: 0.5}}, classes: ['1', ü], val_share: 0.1}}\n",
        "model: {in_channels: 1, normalise: {mean: [3]}, fpn: {activation: silu, output_conv: false}}\n",
    ],
)
def test_chosen_values_are_read_back_equal(text: str, tmp_path: Path) -> None:
    check_round_trip(load_config(write(tmp_path, text)), tmp_path / "config.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_a_resolved_config_is_read_back_equal(name: str, tmp_path: Path) -> None:
    check_round_trip(load_config(name, ["data.train.images='Bilder/ö: #1'"]), tmp_path / "config.yaml")


numbers = st.floats(1e-6, 1e6)


@settings(max_examples=25)
@given(
    lr=numbers,
    seed=st.integers(0, 2**40),
    path=st.text(max_size=10),
    mean=st.lists(st.floats(-300, 300), min_size=3, max_size=3),
    sizes=st.dictionaries(st.integers(3, 7), numbers),
    clip_norm=st.none() | numbers,
)
def test_any_config_is_read_back_equal(
    lr: float,
    seed: int,
    path: str,
    mean: list[float],
    sizes: dict[int, float],
    clip_norm: float | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    tree = {
        "seed": seed,
        "data": {"train": {"images": path}},
        "model": {
            "normalise": {"mean": mean},
            "anchors": {"levels": {level: {"base_size": size} for level, size in sizes.items()}},
        },
        "train": {"optimizer": {"lr": lr}, "clip_norm": clip_norm},
    }
    check_round_trip(Config.model_validate(tree), tmp_path_factory.getbasetemp() / "config.yaml")
