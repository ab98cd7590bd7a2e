"""Learning rates by hand, and what the optimizer decays."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import undrawn
from torch import nn
from torch.nn.modules.conv import _ConvNd

from detector.config.schema import BackboneConfig, HeadConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from detector.errors import WeightsError
from detector.models import build_model
from detector.models.backbones import build_backbone
from detector.training.optimizer import build_optimizer, load_optimizer, lr_factor, scaled_lr, set_lr

OPTIMIZERS = get_args(OptimizerConfig.model_fields["name"].annotation)


def make_net() -> nn.Sequential:
    """A frozen convolution, then one with a bias, a norm and a linear layer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    return net


# --- learning rate ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lr", "lr_batch_size", "batch_size", "expected"),
    [(0.01, 16, 16, 0.01), (0.01, 16, 2, 0.00125), (0.01, 16, 64, 0.04), (1e-4, 8, 12, 1.5e-4)],
)
def test_scaled_lr_by_hand(lr: float, lr_batch_size: int, batch_size: int, expected: float) -> None:
    assert scaled_lr(OptimizerConfig(lr=lr, lr_batch_size=lr_batch_size), batch_size) == pytest.approx(expected)


def factors(steps: int, **schedule: object) -> list[float]:
    return [lr_factor(ScheduleConfig(**schedule), step, steps, steps_per_epoch=4) for step in range(steps)]


def test_warmup_by_hand() -> None:
    # 0.1 + 0.9 · step / 4
    expected = [0.1, 0.325, 0.55, 0.775, 1, 1]
    assert factors(6, warmup_steps=4, warmup_factor=0.1, milestones=[]) == pytest.approx(expected)
    # A run shorter than the warm-up: 0.1 + 0.9 · step / 3
    assert factors(3, warmup_steps=500, warmup_factor=0.1, milestones=[]) == pytest.approx([0.1, 0.4, 0.7])
    assert factors(3, warmup_steps=0, milestones=[]) == [1, 1, 1]
    # An epoch has 4 steps: 0.1 + 0.9 · step / 6
    expected = [0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1, 1]
    assert factors(8, warmup_epochs=1.5, warmup_factor=0.1, milestones=[]) == pytest.approx(expected)
    assert factors(3, warmup_epochs=0, milestones=[]) == [1, 1, 1]


def test_multistep_by_hand() -> None:
    schedule = {"warmup_steps": 0, "milestones": [0.5, 0.8], "gamma": 0.1}
    assert factors(10, **schedule) == pytest.approx([1] * 5 + [0.1] * 3 + [0.01] * 2)
    # 0.29 · 100 is 28.999999999999996 in floating point.
    schedule = {"warmup_steps": 0, "milestones": [0.29], "gamma": 0.5}
    assert factors(100, **schedule) == [1] * 29 + [0.5] * 71
    # Within the warm-up: 0.5 + 0.5 · step / 4, and a tenth of it from step 2 of 4.
    schedule = {"warmup_steps": 4, "warmup_factor": 0.5, "milestones": [0.5], "gamma": 0.1}
    assert factors(4, **schedule) == pytest.approx([0.5, 0.625, 0.075, 0.0875])


def test_multistep_of_the_reference_schedule() -> None:
    # RetinaNet, section 4.1: 90,000 steps, a tenth from 60,000 and again from 80,000.
    config = ScheduleConfig()
    table = {0: 0.001, 250: 0.5005, 500: 1, 59_999: 1, 60_000: 0.1, 79_999: 0.1, 80_000: 0.01, 89_999: 0.01}
    assert {step: lr_factor(config, step, 90_000, 7_500) for step in table} == pytest.approx(table)


def test_cosine_by_hand() -> None:
    # (1 + cos(π · step / 6)) / 2
    root = math.sqrt(3) / 4
    expected = [1, 0.5 + root, 0.75, 0.5, 0.25, 0.5 - root]
    assert factors(6, name="cosine", warmup_steps=0) == pytest.approx(expected)
    # The warm-up multiplies it: 0.2 + 0.8 · step / 2
    expected[:2] = [0.2, 0.6 * expected[1]]
    assert factors(6, name="cosine", warmup_steps=2, warmup_factor=0.2) == pytest.approx(expected)


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(get_args(ScheduleConfig.model_fields["name"].annotation)),
    st.integers(1, 300),
    st.integers(0, 400),
    st.lists(st.integers(0, 10).map(lambda n: n / 10), max_size=3),
)
def test_factor_is_positive_and_falls_after_the_warmup(
    name: str, steps: int, warmup_steps: int, milestones: list[float]
) -> None:
    schedule = factors(steps, name=name, warmup_steps=warmup_steps, milestones=milestones)
    assert all(0 < factor <= 1 for factor in schedule)
    after = schedule[warmup_steps:]
    assert after == sorted(after, reverse=True)


# --- optimizer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay_norm_and_bias", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_trained_parameter_is_optimised_once(name: str, decay_norm_and_bias: bool) -> None:
    net = make_net()
    config = OptimizerConfig(name=name, lr=0.02, weight_decay=0.3, decay_norm_and_bias=decay_norm_and_bias)
    optimizer = build_optimizer(net, config, batch_size=8)
    decay_of = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    vector_decay = 0.3 if decay_norm_and_bias else 0.0
    assert [decay_of.get(id(parameter)) for parameter in net.parameters()] == [
        *(None, None),  # frozen
        *(0.3, vector_decay),  # convolution
        *(vector_decay, vector_decay),  # norm
        *(0.3, vector_decay),  # linear
    ]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 6
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01]  # 0.02 · 8 / 16


@pytest.mark.parametrize("name", ["resnet10", "vgg11", "swin_t", "timm:resnet10t", "timm:efficientnet_lite0"])
def test_a_stage_has_a_part_of_the_next_ones_rate(name: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    with undrawn():
        model = build_model(ModelConfig(backbone=BackboneConfig(name=name)), num_classes=2)
    config = OptimizerConfig(lr=1.0, backbone_rate=0.5, layer_decay=0.8, decay_norm_and_bias=False)
    optimizer = build_optimizer(model, config, batch_size=16)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    set_lr(optimizer, 2.0)
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    rates = {name: rate_of[id(parameter)] for name, parameter in model.named_parameters()}
    assert {rate for name, rate in rates.items() if ".backbone." not in name} == {2.0}
    own = [rate for name, rate in rates.items() if ".backbone." in name]
    # Half of 2 in C5, 0.8 of that in C4, 0.64 in C3, 0.512 in the stem and C2; parameters come in the network's order.
    # VGG's C5 is pooled from C4, without parameters of its own.
    assert list(dict.fromkeys(own)) == pytest.approx([0.512, 0.64, 0.8, 1.0][: 3 if name == "vgg11" else 4])


def test_resnets_stages_by_name() -> None:
    with torch.device("meta"):
        stages = build_backbone(BackboneConfig(name="resnet18"), in_channels=3, finest=3).stage_of_parameters()
    assert all(stages[name] == int(name[5]) + 1 for name in stages if name.startswith("layer"))
    assert {stages[name] for name in stages if not name.startswith("layer")} == {2}


def layer_weights(network: nn.Module) -> set[str]:
    """Names of what convolutions and linear layers multiply by, by the layers' types."""
    layers = (_ConvNd, nn.Linear)
    return {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, layers)}


def decayed(network: nn.Module) -> set[str]:
    """Names of what decays where norms and biases do not."""
    config = OptimizerConfig(weight_decay=0.3, decay_norm_and_bias=False)
    groups = build_optimizer(network, config, batch_size=16).param_groups
    decays = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    return {name for name, parameter in network.named_parameters() if id(parameter) in decays}


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("resnet18", []),
        ("vgg11", []),
        ("convnext_tiny", ["features.1.0.layer_scale"]),
        ("swin_t", ["features.1.0.attn.relative_position_bias_table"]),
        ("swin_v2_t", ["features.1.0.attn.logit_scale", "features.7.1.norm1.weight"]),
    ],
)
def test_weights_of_layers_decay_and_nothing_else(name: str, others: list[str]) -> None:
    # Tracing changes the types of some layers, so compare with the types before.
    with torch.device("meta"):
        expected = layer_weights(torchvision.models.get_model(name))
    with undrawn():
        body = build_backbone(BackboneConfig(name=name), in_channels=3, finest=2).body
    own = {parameter for parameter, _ in body.named_parameters()}
    assert decayed(body) == expected & own
    assert set(others) <= own - decayed(body)
    assert len(decayed(body)) > 5


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("resnet10t", []),
        ("fastvit_t8", ["stages_0.blocks.0.layer_scale.gamma"]),
        ("efficientformerv2_s0", ["stages_3.blocks.2.token_mixer.attention_biases"]),
        ("nfnet_f0", ["stages_0.0.conv1.gain"]),
    ],
)
def test_weights_of_timms_layers_decay_and_nothing_else(name: str, others: list[str]) -> None:
    with torch.device("meta"):
        network = pytest.importorskip("timm").create_model(name, pretrained=False, features_only=True)
    assert decayed(network) == layer_weights(network)
    assert set(others) <= {parameter for parameter, _ in network.named_parameters()} - decayed(network)


def test_weights_of_pooling_do_not_decay() -> None:
    head = HeadConfig(name="pooled", pool="gem", fuse="learned")
    model = build_model(ModelConfig(backbone=BackboneConfig(name="resnet10"), head=head), num_classes=2)
    assert {name for name in decayed(model) if name.startswith("head.")} == {"head.classifier.weight"}
    assert len(layer_weights(model)) == len(decayed(model))


def test_an_optimizer_of_other_groups_is_refused_in_one_line() -> None:
    net = make_net()
    net.register_parameter("layer_scale", nn.Parameter(torch.ones(4, 1, 1)))
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    # As an earlier version grouped them: by number of axes.
    groups = [{"params": [p for p in trained if (p.ndim > 1) == is_matrix]} for is_matrix in (True, False)]
    old = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)
    with pytest.raises(WeightsError, match=r"last.pt: its optimizer .* earlier versions .* --init-from") as error:
        load_optimizer(build_optimizer(net, OptimizerConfig(), 16), old.state_dict(), "last.pt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_a_gradient_only_decayed_weights_shrink(name: str) -> None:
    net = make_net()
    before = [parameter.detach().clone() for parameter in net.parameters()]
    optimizer = build_optimizer(
        net, OptimizerConfig(name=name, lr=0.1, weight_decay=0.5, decay_norm_and_bias=False), batch_size=16
    )
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # w - 0.1 · 0.5 · w
    for index, (parameter, was) in enumerate(zip(net.parameters(), before, strict=True)):
        factor = 0.95 if index in (2, 6) else 1.0
        torch.testing.assert_close(parameter.detach(), factor * was)


def test_sgd_by_hand() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    optimizer = build_optimizer(net, OptimizerConfig(lr=0.1, momentum=0.5, weight_decay=0.0), batch_size=16)
    weights = []
    for _ in range(3):
        net.weight.grad = torch.ones_like(net.weight)
        optimizer.step()
        weights.append(net.weight.item())
    # Velocities 1, 1.5 and 1.75, each times 0.1.
    assert weights == pytest.approx([0.9, 0.75, 0.575])


def test_optimizers_by_name() -> None:
    kinds = {name: type(build_optimizer(make_net(), OptimizerConfig(name=name), 16)) for name in OPTIMIZERS}
    assert kinds == {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


def test_set_lr_sets_every_group() -> None:
    optimizer = build_optimizer(make_net(), OptimizerConfig(), 16)
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
