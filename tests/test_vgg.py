"""VGG: every column of the paper's table 1, its normalisation by hand, and torchvision's names."""

from __future__ import annotations

import pytest
import torch
import torchvision
from networks import undrawn
from torch import Tensor, nn
from torch.testing import assert_close

from detector.config.schema import BackboneConfig, HeadConfig, ModelConfig
from detector.models import build_model
from detector.models.backbones import BACKBONES, build_backbone
from detector.models.vgg import CONFIGURATIONS, build_vgg

OF_TORCHVISION = ["vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"]

# Simonyan & Zisserman 2015, table 1: weight layers, and the convolutions of each stage; P is a max pooling.
TABLE = {
    "vgg11": (11, "3x64 P 3x128 P 3x256 3x256 P 3x512 3x512 P 3x512 3x512 P"),
    "vgg11_lrn": (11, "3x64 LRN P 3x128 P 3x256 3x256 P 3x512 3x512 P 3x512 3x512 P"),
    "vgg13": (13, "3x64 3x64 P 3x128 3x128 P 3x256 3x256 P 3x512 3x512 P 3x512 3x512 P"),
    "vgg16_1x1": (16, "3x64 3x64 P 3x128 3x128 P 3x256 3x256 1x256 P 3x512 3x512 1x512 P 3x512 3x512 1x512 P"),
    "vgg16": (16, "3x64 3x64 P 3x128 3x128 P 3x256 3x256 3x256 P 3x512 3x512 3x512 P 3x512 3x512 3x512 P"),
    "vgg19": (
        19,
        "3x64 3x64 P 3x128 3x128 P 3x256 3x256 3x256 3x256 P 3x512 3x512 3x512 3x512 P 3x512 3x512 3x512 3x512 P",
    ),
}


def features_of(name: str) -> nn.Sequential:
    with torch.device("meta"):
        return BACKBONES[name].build().features


def described(features: nn.Sequential) -> str:
    """Its layers in the words of ``TABLE``."""
    words = {nn.MaxPool2d: "P", nn.LocalResponseNorm: "LRN"}
    return " ".join(
        f"{module.kernel_size[0]}x{module.out_channels}" if isinstance(module, nn.Conv2d) else words[type(module)]
        for module in features
        if not isinstance(module, (nn.ReLU, nn.BatchNorm2d))
    )


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_column_is_there_with_batch_norm_too() -> None:
    assert set(CONFIGURATIONS) == set(TABLE)
    names = {name for name in BACKBONES if name.startswith("vgg")}
    assert names == set(TABLE) | {f"{name}_bn" for name in TABLE if name != "vgg11_lrn"}


@pytest.mark.parametrize("name", [name for name in BACKBONES if name.startswith("vgg")])
def test_layers_are_those_of_the_table(name: str) -> None:
    weight_layers, layers = TABLE[name.removesuffix("_bn")]
    with torch.device("meta"):
        network = BACKBONES[name].build()
    assert described(network.features) == layers
    convolutions = [module for module in network.features if isinstance(module, nn.Conv2d)]
    fully_connected = [module for module in network.classifier if isinstance(module, nn.Linear)]
    assert len(convolutions) + len(fully_connected) == weight_layers
    assert [(module.in_features, module.out_features) for module in fully_connected] == [
        (512 * 7 * 7, 4096),
        (4096, 4096),
        (4096, 1000),
    ]
    # Section 2.1: stride 1, the padding keeps the size, and every hidden layer has a ReLU.
    for module in convolutions:
        assert module.stride == (1, 1)
        assert module.padding == (module.kernel_size[0] // 2,) * 2
    followers = ["Conv2d", *(["BatchNorm2d"] if name.endswith("_bn") else []), "ReLU"]
    kinds = [type(module).__name__ for module in network.features if type(module).__name__ in followers]
    assert kinds == followers * len(convolutions)


def test_c_has_pointwise_convolutions_in_its_last_three_stages() -> None:
    kernels = [module.kernel_size[0] for module in features_of("vgg16_1x1") if isinstance(module, nn.Conv2d)]
    assert kernels == [3, 3, 3, 3, 3, 3, 1, 3, 3, 1, 3, 3, 1]


@pytest.mark.parametrize(
    ("name", "num_classes", "parameters"),
    [
        # Convolutions of D: (3 + 64) · 64 · 9 + (64 + 128) · 128 · 9 + (128 + 2 · 256) · 256 · 9
        # + (256 + 2 · 512) · 512 · 9 + 3 · 512 · 512 · 9 = 14,710,464 weights, 4,224 biases.
        # Its classifier: 25,088 · 4,096 + 4,096 · 4,096 + 4,096 · K weights and 4,096 + 4,096 + K biases, that is
        # 119,545,856 + 4,097 · K.
        ("vgg16", 1000, 138_357_544),
        ("vgg16_bn", 4, 134_285_380),  # 4,224 more of scale and of shift; K = 4
        ("vgg11", 1000, 132_863_336),
        ("vgg11_lrn", 1000, 132_863_336),  # normalising has no parameters
        ("vgg13", 1000, 133_047_848),
        ("vgg19", 1000, 143_667_240),
        # B and 1×1 convolutions in three stages: 133,047,848 + 256 · 256 + 256 + 2 · (512 · 512 + 512).
        ("vgg16_1x1", 1000, 133_638_952),
    ],
)
def test_parameters_of_the_whole_network(name: str, num_classes: int, parameters: int) -> None:
    config = ModelConfig(backbone=BackboneConfig(name=name), head=HeadConfig(name="classic"))
    with torch.device("meta"):
        model = build_model(config, num_classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_names_and_shapes_are_those_of_torchvision(name: str) -> None:
    with torch.device("meta"):
        own = build_vgg(CONFIGURATIONS[name.removesuffix("_bn")], batch_norm=name.endswith("_bn"))
        published = torchvision.models.get_model(name, weights=None)
    shapes = {key: tensor.shape for key, tensor in own.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in published.state_dict().items()}


# --- what it puts out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "places"),
    [  # of the last layers of stages 3 and 4 before their poolings, of stage 5's, and of its pooling
        ("vgg11", (9, 14, 19, 20)),
        ("vgg11_lrn", (10, 15, 20, 21)),
        ("vgg13", (13, 18, 23, 24)),
        ("vgg16_1x1", (15, 22, 29, 30)),
        ("vgg16", (15, 22, 29, 30)),
        ("vgg19_bn", (25, 38, 51, 52)),
    ],
)
def test_levels_are_stages_before_their_pooling(name: str, places: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    with undrawn():  # the linear layers, which a backbone drops
        backbone = build_backbone(BackboneConfig(name=name), in_channels=3, finest=2).eval()
    for module in backbone.body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    assert backbone.channels == (256, 512, 512, 512)
    layers = features_of(name)
    assert [type(layers[place]) for place in places] == [nn.ReLU] * 3 + [nn.MaxPool2d]
    assert [type(layers[place + 1]) for place in places[:3]] == [nn.MaxPool2d] * 3
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = backbone(images)
        expected, at_place = images, {}
        for place in range(len(layers)):
            expected = backbone.body.get_submodule(f"features.{place}")(expected)
            at_place[place] = expected.clone()  # a ReLU writes into its input
    assert [tuple(feature.shape) for feature in features] == [
        (1, 256, 16, 24),
        (1, 512, 8, 12),
        (1, 512, 4, 6),
        (1, 512, 2, 3),
    ]
    for feature, place in zip(features, places, strict=True):
        assert_close(feature, at_place[place])


def by_the_formula(activations: Tensor) -> Tensor:
    """b_i = a_i / (k + α Σ a_j²)^β over the n channels around i (Krizhevsky et al. 2012, section 3.3)."""
    k, n, alpha, beta = 2.0, 5, 1e-4, 0.75
    channels = activations.shape[1]
    normalised = torch.empty_like(activations)
    for i in range(channels):
        total = torch.zeros_like(activations[:, 0])
        for j in range(max(0, i - n // 2), min(channels - 1, i + n // 2) + 1):
            total += activations[:, j] ** 2
        normalised[:, i] = activations[:, i] / (k + alpha * total) ** beta
    return normalised


def test_local_response_normalisation_by_the_formula() -> None:
    torch.manual_seed(0)
    with undrawn():
        layers = build_backbone(BackboneConfig(name="vgg11_lrn"), in_channels=3, finest=2).body.features
    activations = 100 * torch.rand(2, 64, 5, 7)  # so large that the sum of squares outweighs k
    expected = by_the_formula(activations)
    # Squares of 0..100 are 3333 on average: (2 + 1e-4 · 5 · 3333)^0.75 = 2.65. The mean of the five instead of their
    # sum would be (2 + 1e-4 · 3333)^0.75 = 1.89.
    assert (activations / expected).median().item() == pytest.approx(2.65, rel=0.05)
    norm = layers.get_submodule("2")  # after the first convolution and its ReLU
    assert_close(norm(activations), expected, rtol=1e-5, atol=1e-5)
