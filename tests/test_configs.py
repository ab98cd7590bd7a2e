"""Every config of the package resolves, its backbones build, and on a small one it takes a training step."""

from __future__ import annotations

import pytest
import torch
from networks import on_resnet10

from detector.config.loader import CONFIG_FOLDERS, load_config
from detector.config.schema import BackboneConfig, Config
from detector.models import build_model
from detector.models.backbones import build_backbone
from detector.structures import IGNORED_PIXEL, ClassTargets, MaskTargets, Targets
from detector.tasks import get_task
from detector.training.optimizer import build_optimizer

NAMES = sorted(path.name for path in CONFIG_FOLDERS[0].glob("*.yaml"))


def test_the_promised_configs_are_there() -> None:
    promised = ["quickstart", "retinanet_r18_fpn", "retinanet_r50_fpn", "retinanet_r101_fpn", "retinanet_r50_fpn_v2"]
    promised += ["retinanet_r50_fpn_p2", "retinanet_r50_fpn_small_anchors", "bccd_r18_scratch"]
    promised += ["retinanet_vgg16_fpn", "retinanet_x50_32x4d_fpn", "retinanet_x101_32x8d_fpn"]
    promised += ["retinanet_x50_32x4d_fpn_800", "retinanet_r50_fpn_gfl", "retinanet_r50_fpn_gfl_plus"]
    promised += ["retinanet_convnext_t_fpn", "retinanet_vgg16_r50_fused"]
    promised += ["classify_vgg16_fpn", "classify_r50_fpn", "classify_vgg16_r50_fused", "classify_vgg16_bn"]
    promised += ["classify_x50_32x4d", "classify_quickstart", "trashnet_r18_pooled"]
    promised += ["scratch", "finetune", "classify_finetune"]
    promised += ["segment_quickstart", "segment_r50_fpn", "segment_vgg16_r50_fused", "camvid_r18_scratch"]
    assert {f"{name}.yaml" for name in promised} <= set(NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("classify")])
def test_configs_that_classify_say_so(name: str) -> None:
    config = load_config(name)
    assert config.task == "classification"
    assert len(config.model.backbones) == (2 if "fused" in name else 1)
    is_classic = name in ("classify_vgg16_bn.yaml", "classify_x50_32x4d.yaml", "classify_finetune.yaml")
    assert config.model.head.name == ("classic" if is_classic else "pooled")


def make_targets(config: Config) -> Targets | ClassTargets | MaskTargets:
    """Of two images and three classes."""
    if config.task == "segmentation":
        masks = torch.full((2, 96, 96), IGNORED_PIXEL, dtype=torch.uint8)
        masks[:, :60, :40], masks[0, 30:50, 20:90] = 1, 2
        return MaskTargets(masks, torch.tensor([[1.0, 2, 0.5]] * 2))
    if config.task == "classification":
        return ClassTargets(torch.tensor([[0.0, 1, 0], [0.3, 0, 0.7]]), torch.tensor([[1.0, 2, 0.5]] * 2))
    return Targets(torch.tensor([[[8.0, 8.0, 60.0, 70.0]], [[0.0, 0.0, 0.0, 0.0]]]), torch.tensor([[1], [-1]]))


BRANCHES = {branch.model_dump_json(): branch for name in NAMES for branch in load_config(name).model.backbones}


@pytest.mark.parametrize("branch", BRANCHES.values(), ids=lambda branch: branch.name)
def test_backbones_are_frozen_as_a_config_says(branch: BackboneConfig) -> None:
    with torch.device("meta"):
        backbone = build_backbone(branch, in_channels=3, finest=3)
    frozen = sum(not parameter.requires_grad for parameter in backbone.parameters())
    assert bool(frozen) == (branch.freeze_at > 0)
    assert backbone.levels == (3, 4, 5)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_takes_a_training_step(name: str) -> None:
    torch.manual_seed(0)
    config = on_resnet10(load_config(name))
    task = get_task(config)
    model = build_model(config.model, num_classes=3).train()
    optimizer = build_optimizer(model, config.train.optimizer, config.train.batch_size)
    before = {name: own.detach().clone() for name, own in model.named_parameters()}

    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    sizes = torch.tensor([[96, 96], [96, 96] if config.task == "classification" else [90, 80]])
    losses = task.loss(model(images, sizes), make_targets(config), config.model)
    assert losses.normaliser > 0
    total = sum(losses.parts.values()) / losses.normaliser
    assert total.isfinite()
    total.backward()
    optimizer.step()

    for parameter_name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), parameter_name
        assert parameter.requires_grad == (parameter.grad is not None), parameter_name
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert bool(frozen) == any(backbone.freeze_at > 0 for backbone in config.model.backbones)
    assert all(torch.equal(before[name], dict(model.named_parameters())[name]) for name in frozen)
    assert any(not torch.equal(tensor, dict(model.named_parameters())[name]) for name, tensor in before.items())
