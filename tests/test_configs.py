"""Every config of the package resolves, builds and takes a training step."""

from __future__ import annotations

import pytest
import torch

from detector.config import CONFIG_FOLDERS, load_config
from detector.models import build_model
from detector.optim import build_optimizer
from detector.structures import Targets
from detector.tasks import get_task

NAMES = sorted(path.name for path in CONFIG_FOLDERS[0].glob("*.yaml"))


def test_the_promised_configs_are_there() -> None:
    promised = ["quickstart", "retinanet_r18_fpn", "retinanet_r50_fpn", "retinanet_r101_fpn", "retinanet_r50_fpn_v2"]
    promised += ["retinanet_r50_fpn_p2", "retinanet_r50_fpn_small_anchors", "bccd_r18_scratch"]
    assert {f"{name}.yaml" for name in promised} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_takes_a_training_step(name: str) -> None:
    torch.manual_seed(0)
    config = load_config(name)
    task = get_task(config)
    model = build_model(config.model, num_classes=3).train()
    optimizer = build_optimizer(model, config.train.optimizer, config.train.batch_size)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    images = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8)
    sizes = torch.tensor([[96, 128], [90, 100]])
    targets = Targets(torch.tensor([[[8.0, 8.0, 60.0, 70.0]], [[0.0, 0.0, 0.0, 0.0]]]), torch.tensor([[1], [-1]]))
    losses = task.loss(model(images, sizes), targets, config.model)
    assert losses.normaliser > 0
    total = sum(losses.parts.values()) / losses.normaliser
    assert total.isfinite()
    total.backward()
    optimizer.step()

    for parameter_name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), parameter_name
        assert parameter.requires_grad == (parameter.grad is not None), parameter_name
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert bool(frozen) == (config.model.backbone.freeze_at > 0)
    assert all(torch.equal(before[name], dict(model.named_parameters())[name]) for name in frozen)
    assert any(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
