"""Opening a model: sources, a config's initial model, old checkpoints, and the user's own parts."""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import detector
from detector.__main__ import run_command
from detector.checkpoints.checkpoint import read_checkpoint, save_checkpoint
from detector.checkpoints.opening import open_model
from detector.config.loader import load_config
from detector.config.parts import find_part, is_code
from detector.config.schema import BackboneConfig, ModelConfig
from detector.errors import ConfigError, DetectorError, WeightsError
from detector.models import build_model
from detector.models.backbones import BACKBONES, Backbone, Network, build_backbone
from detector.models.heads import HEADS, RetinaHead
from detector.ops.coders import DeltaCoder
from detector.structures import Category, Predictions

TINY = ["model.backbone={name: resnet10}", "model.fpn={levels: [3, 4], channels: 8}", "model.head={num_convs: 1}"]
TINY += ["data.resize={short: [64], long: 64}", "data.workers=0", "train.batch_size=4", "train.steps=1"]


def data_overrides(folder: Path) -> list[str]:
    return [
        f"data.{split}={{annotations: {folder}/annotations/{split}.json, images: {folder}/images}}"
        for split in ("train", "val")
    ]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = load_config("quickstart.yaml", TINY)
    path = tmp_path_factory.mktemp("opening") / "best.pt"
    categories = [Category(3, "cat"), Category(8, "dog")]
    save_checkpoint(path, config, categories, {"model": build_model(config.model, 2).state_dict()})
    return path


def same_weights(model: nn.Module, state: dict[str, Tensor]) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], tensor) for name, tensor in state.items())


def test_a_checkpoint_a_run_and_a_folder_with_one_run(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs/one").mkdir(parents=True)
    (tmp_path / "runs/empty").mkdir()
    shutil.copy(checkpoint, tmp_path / "runs/one/last.pt")
    state = read_checkpoint(checkpoint)["model"]
    for source in (checkpoint, tmp_path / "runs/one", tmp_path / "runs"):
        model, config, categories = open_model(source, ["model.predict.max_detections=7"], "cpu")
        assert same_weights(model, state) and not model.training
        assert config.model.predict.max_detections == 7
        assert categories == [Category(3, "cat"), Category(8, "dog")]
    assert f"runs: is a folder; using {Path('one/last.pt')}" in capsys.readouterr().err

    shutil.copytree(tmp_path / "runs/one", tmp_path / "runs/two")
    names = f"{tmp_path / 'runs/one'}, {tmp_path / 'runs/two'}"
    with pytest.raises(WeightsError, match=f"runs: holds 2 runs: {names}; give one of them$"):
        open_model(tmp_path / "runs")
    with pytest.raises(WeightsError, match=r"empty: is a folder without best\.pt and last\.pt"):
        open_model(tmp_path / "runs/empty")
    with pytest.raises(ConfigError, match="has its own classes"):
        open_model(checkpoint, classes=["a", "b"])


def test_a_config_is_initialised_as_in_training(checkpoint: Path) -> None:
    config = load_config("quickstart.yaml", TINY)
    with pytest.raises(ConfigError, match=r"quickstart\.yaml: does not name the classes; give classes"):
        open_model("quickstart.yaml", TINY)
    torch.manual_seed(0)
    expected = build_model(config.model, 3).state_dict()
    for source, overrides in (("quickstart.yaml", TINY), (config, [])):
        torch.manual_seed(0)
        model, own, categories = open_model(source, overrides, "cpu", classes=["a", "b", "c"])
        assert same_weights(model, expected)
        assert own.model == config.model
        assert categories == [Category(0, "a"), Category(1, "b"), Category(2, "c")]
    model, _, categories = open_model(config, [f"model.weights={checkpoint}"], "cpu")
    assert same_weights(model, read_checkpoint(checkpoint)["model"])
    assert categories == [Category(3, "cat"), Category(8, "dog")]


def test_a_summary_of_a_checkpoint_has_its_classes(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("summary", ["--config", str(checkpoint), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    tensors = read_checkpoint(checkpoint)["model"]
    floats = [tensor for name, tensor in tensors.items() if not name.endswith(("mean", "var", "num_batches_tracked"))]
    assert (found["classes"], found["parameters"]) == (2, sum(tensor.numel() for tensor in floats))


# --- a checkpoint of the version before the redesign ------------------------------------------------------------------

# The config of a run as it was written before norm_bias, exif and max_value existed.
OLD_CONFIG = json.loads("""
{"task": "detection", "seed": 0, "data": {"train": {"annotations": "t.json", "images": "i"}, "val": {"annotations":
"t.json", "images": "i"}, "invalid_boxes": "error", "allow_outside": false, "on_bad_image": "error", "max_bad_share":
0.01, "val_share": null, "classes": null, "class_weights": null, "resize": {"short": [64], "long": 64, "fixed": null,
"rounding": "nearest", "interpolation": "area"}, "crop": {"size": 224, "scale": [0.08, 1.0], "ratio": [0.75,
1.3333333333333333], "eval_share": 0.875}, "augment": {"horizontal_flip": 0.5, "vertical_flip": 0.0, "photometric":
0.0, "scale_jitter": null, "min_visibility": 0.25, "mixup": 0.0, "cutmix": 0.0}, "group_by_aspect": true, "workers":
1}, "model": {"weights": null, "in_channels": 3, "normalise": {"mean": null, "std": null}, "backbone": {"name":
"resnet10", "weights": null, "norm": "bn", "freeze_at": 0, "norm_eps": null, "stride_in_1x1": false}, "pyramid":
{"branches": [], "fuse": "sum"}, "fpn": {"levels": [3, 4], "channels": 8, "p6_from": "c5", "relu_before_p7": true,
"norm": "none", "activation": "none", "upsample": "nearest", "output_conv": true}, "anchors": {"base_size": 2.0,
"ratios": [0.7, 1.0, 1.4], "scales": [1.0, 1.2599210498948732, 1.5874010519681994], "offset": 0.0, "rounded": false,
"strides": "exact", "levels": {}}, "head": {"name": "retina", "num_convs": 1, "channels": null, "norm": "none",
"prior": 0.01, "pool": "avg", "fuse": "concat", "hidden": [], "dropout": 0.0}, "matcher": {"name": "max_iou",
"positive": 0.5, "negative": 0.4, "low_quality": true, "ignore_cover": 0.5}, "loss": {"cls": "focal", "alpha": 0.25,
"gamma": 2.0, "cls_weight": 1.0, "box": "giou", "beta": 0.1, "box_weight": 2.0, "label_smoothing": 0.0}, "predict":
{"topk": 1000, "score_threshold": 0.3, "nms_threshold": 0.5, "max_detections": 3, "clip": "before_nms", "keep_empty":
false, "classes": 5}, "multi_label": false}, "train": {"batch_size": 8, "accumulate": 1, "epochs": 2, "steps": null,
"optimizer": {"name": "adamw", "lr": 0.002, "lr_batch_size": 8, "momentum": 0.9, "weight_decay": 0.05,
"decay_norm_and_bias": false}, "schedule": {"name": "cosine", "warmup_steps": 50, "warmup_factor": 0.001,
"milestones": [0.6666666666666666, 0.8888888888888888], "gamma": 0.1}, "clip_norm": 1.0, "precision": "fp32", "ema":
0.99, "compile": false, "activation_checkpointing": false, "checkpoint_steps": 1000, "checkpoint_minutes": 10.0,
"non_finite": "stop", "max_skips": 20, "log_steps": 20, "tensorboard": false}, "eval": {"every_epochs": 2,
"batch_size": 8, "backend": "hotcoco", "per_class": true}}
""")


def test_a_checkpoint_of_an_older_version_predicts_as_it_did(tmp_path: Path) -> None:
    missing = {"exif", "max_value"} - OLD_CONFIG["data"].keys() | {"norm_bias"} - OLD_CONFIG["model"]["head"].keys()
    assert missing == {"exif", "max_value", "norm_bias"}
    state = build_model(ModelConfig(**OLD_CONFIG["model"]), 2).state_dict()
    shapes = {name: tensor.shape for name, tensor in state.items()}
    # The names of its tensors.
    assert hashlib.sha256("\n".join(sorted(shapes)).encode()).hexdigest()[:16] == "11aff715ee169f93"
    rng = np.random.default_rng(0)

    def tensor(name: str) -> Tensor:
        if name.endswith("num_batches_tracked"):
            return torch.tensor(7)
        if name.endswith("running_var"):
            return torch.ones(shapes[name])
        scale = (0.2 if name.startswith("head.") else 1) / max(1, np.prod(shapes[name][1:])) ** 0.5
        return torch.tensor(rng.normal(size=tuple(shapes[name])) * scale, dtype=torch.float32)

    content = {
        "format": 1,
        "config": OLD_CONFIG,
        "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
        "versions": {"detector": "0.1.0"},
        "model": {name: tensor(name) for name in sorted(shapes)},
    }
    torch.save(content, tmp_path / "old.pt")
    image = (np.arange(48 * 64 * 3).reshape(48, 64, 3) * 7 % 256).astype(np.uint8)
    (found,) = detector.load(tmp_path / "old.pt", "cpu").predict([image])
    # That version's results.
    np.testing.assert_allclose(
        found.boxes, [[35.473, 14.205, 64, 48], [36.933, 0, 64, 32.757], [28.815, 32.338, 62.16, 48]], atol=0.01
    )
    np.testing.assert_allclose(found.scores, [0.6222, 0.61438, 0.61345], atol=1e-4)
    assert found.category_ids.tolist() == [3, 3, 3]


# --- the user's own parts ---------------------------------------------------------------------------------------------


class OwnHead(RetinaHead):
    """Scores that no other head gives."""

    def forward(self, pyramid: list[Tensor]) -> Predictions:
        predictions = super().forward(pyramid)
        return predictions._replace(cls_logits=predictions.cls_logits * 0 + 3.0)


class OwnNetwork(nn.Module):
    """Feature maps of strides 4 to 32."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 6, 4, stride=4)
        self.stages = nn.ModuleList(nn.Conv2d(6, 6, 2, stride=2) for _ in range(3))

    def forward(self, images: Tensor) -> list[Tensor]:
        features = [self.stem(images)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features


def own_backbone(config: object, in_channels: int) -> nn.Module:
    return OwnNetwork(in_channels)


NETWORK = Network(nn.Identity, "")


def own_coder(config: object) -> DeltaCoder:
    return DeltaCoder()


CODE = [
    "model.backbone.name=own_parts:own_backbone",
    "model.head.name=own_parts:OwnHead",
    "model.matcher.name=own_parts:max_iou",
    "model.box_coder.name=own_parts:own_coder",
    "model.loss={cls: 'own_parts:focal_loss', box: 'own_parts:giou_loss'}",
]


@pytest.fixture
def own_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the module own_parts, which writes a file when it is imported."""
    folder = tmp_path / "code"
    folder.mkdir()
    lines = ["import torch", "from pathlib import Path", "from torch import Tensor, nn"]
    lines += ["from detector.models.heads import RetinaHead", "from detector.ops.assignment import max_iou"]
    lines += ["from detector.ops.coders import DeltaCoder", "from detector.ops.losses import focal_loss, giou_loss"]
    lines += ["Path(__file__).with_name('imported').touch()"]
    lines += [inspect.getsource(part) for part in (OwnHead, OwnNetwork, own_backbone, own_coder)]
    text = "from __future__ import annotations\n" + "\n".join(lines)
    (folder / "own_parts.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "own_parts", raising=False)
    return folder


def test_code_runs_only_with_allow_code(
    own_parts: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("base: quickstart.yaml\n")
    arguments = ["--config", str(config), "--runs", str(tmp_path / "runs"), "--device", "cpu"]
    arguments += [*TINY, *CODE, *data_overrides(shapes)]
    says = "is code, which runs only if you trust it: add --allow-code (in Python, allow_code=True)"
    assert run_command("train", arguments) == 2
    assert f"error: {config}: model.backbone.name: own_parts:own_backbone {says}\n" == capsys.readouterr().err
    best = tmp_path / "runs/mine/best.pt"
    assert run_command("train", [*arguments, "--allow-code"]) == 0
    (own_parts / "imported").unlink()
    del sys.modules["own_parts"]
    capsys.readouterr()

    images = ["--input", str(shapes / "images/val_*.jpg"), "--output", str(tmp_path / "found"), "--workers", "0"]
    for command, given in (("evaluate", ["--json"]), ("infer", images)):
        given = ["--checkpoint", str(best), "--device", "cpu", *given]
        assert run_command(command, given) == 2
        assert f"error: {best}: model.backbone.name: own_parts:own_backbone {says}\n" == capsys.readouterr().err
    for refused in (detector.load, detector.evaluate, open_model):
        with pytest.raises(DetectorError, match="add --allow-code"):
            refused(best)
    with pytest.raises(ConfigError, match=r"^the config: .* add --allow-code"):
        open_model(load_config(best.parent / "config.yaml", allow_code=True))
    assert not (own_parts / "imported").exists()

    assert run_command("infer", ["--checkpoint", str(best), "--device", "cpu", *images, "--allow-code"]) == 0
    assert (own_parts / "imported").exists()
    rows = json.loads((tmp_path / "found/predictions.json").read_text())
    assert {row["score"] for row in rows} == {round(1 / (1 + np.exp(-3.0)), 5)}
    capsys.readouterr()
    assert run_command("evaluate", ["--checkpoint", str(best), "--device", "cpu", "--json", "--allow-code"]) == 0
    metrics = detector.evaluate(best, device="cpu", allow_code=True)
    assert {name: metrics[name] for name in ("AP", "AR100")}.items() <= json.loads(capsys.readouterr().out).items()


def test_names_that_are_code() -> None:
    assert is_code("a:b") and is_code("my.parts:Head_2")
    assert not any(map(is_code, ("resnet50", "timm:resnet18", "a.b", "a:b:c", "a: b", "https://x.y/z", "C:/x")))
    assert find_part("model.head.name", "collections:deque", {}).__name__ == "deque"
    for name, said in (("nowhere_at_all:x", "No module named"), ("json:nothing", "no attribute 'nothing'")):
        with pytest.raises(ConfigError, match=rf"^model\.head\.name: {name} cannot be imported \(.*{said}.*PYTHONPATH"):
            find_part("model.head.name", name, {})
    with pytest.raises(ConfigError, match=r"^model\.head\.name: sys:maxsize is int; name a class or a function"):
        find_part("model.head.name", "sys:maxsize", {})
    wanted = r"takes \(obj, skipkeys, .*\); it must take \(config, levels, in_channels, num_classes\)"
    with pytest.raises(ConfigError, match=rf"^model\.head\.name: json:dumps {wanted}$"):
        find_part("model.head.name", "json:dumps", HEADS)
    with pytest.raises(ConfigError, match=r"json:loads takes .* it must take \(config, in_channels\)$"):
        build_backbone(BackboneConfig(name="json:loads"), 3, 3)
    assert find_part("model.backbone.name", f"{__name__}:NETWORK", BACKBONES) is NETWORK


def test_modules_instead_of_a_configs_parts() -> None:
    config = ModelConfig(**{"backbone": {"name": "resnet10"}, "fpn": {"levels": [3, 4], "channels": 8}})
    images, sizes = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96]])
    head = OwnHead(config, (3, 4), 8, 5)
    backbone = Backbone(OwnNetwork(3), in_channels=3, finest=3)
    model = build_model(config, 5, backbone=backbone, head=head).eval()
    assert (model.head, model.pyramid.backbone) == (head, backbone)
    # 8 × 12 cells of stride 8 and 4 × 6 of stride 16, with nine anchors each.
    assert model(images, sizes).cls_logits.unique().tolist() == [3.0]
    assert model(images, sizes).cls_logits.shape == (1, (8 * 12 + 4 * 6) * 9, 5)
    for given, said in (
        ({"head": OwnHead}, r"^head: OwnHead is not a module; give head=OwnHead\(…\)"),
        (
            {"head": torch.nn.Bilinear(1, 1, 1)},
            r"^head: Bilinear.forward takes \(input1, input2\); it must take \(fe",
        ),
        ({"backbone": OwnNetwork(3)}, "^backbone: OwnNetwork has no attribute levels or channels; set levels, as"),
    ):
        with pytest.raises(ConfigError, match=said):
            build_model(config, 5, **given)
    other = build_model(config, 2, pyramid=model.pyramid)
    assert other.pyramid is model.pyramid and other.head.num_classes == 2
