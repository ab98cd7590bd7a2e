"""Backbone weights: by name, path and URL, all of them or an error that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision

from detector.checkpoints.backbone_weights import follow_weights, load_backbone_weights
from detector.config.schema import IMAGENET_MEAN, IMAGENET_STD, BackboneConfig, ModelConfig, NormaliseConfig
from detector.errors import ConfigError, WeightsError
from detector.models.backbones import Backbone, build_backbone


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return torchvision.models.resnet18().state_dict()


def load(source: str | None, norm: str = "bn", name: str = "resnet18", in_channels: int = 3) -> tuple[Backbone, str]:
    config = BackboneConfig(name=name, norm=norm, weights=source)
    backbone = build_backbone(config, in_channels, finest=3)
    return backbone, load_backbone_weights(backbone, config)


def assert_loaded(backbone: Backbone, weights: dict[str, torch.Tensor]) -> None:
    own = backbone.body.state_dict()
    assert len(own) > 80
    assert all(torch.equal(tensor, weights[name]) for name, tensor in own.items())


# ResNet-18 has 11,689,512 parameters; its classifier, which is not used, 512 · 1000 + 1000. Its 20 norms have 4,800
# channels: 2 parameters each, or none where they are frozen.
@pytest.mark.parametrize(
    ("prefix", "norm", "count"), [("", "bn", "11,176,512"), ("file://", "frozen_bn", "11,166,912")]
)
def test_a_file_fills_the_whole_backbone(
    tmp_path: Path, weights: dict[str, torch.Tensor], prefix: str, norm: str, count: str
) -> None:
    path = tmp_path / "w.pth"
    torch.save(weights, path)
    backbone, line = load(f"{prefix}{path}", norm)
    assert_loaded(backbone, weights)
    assert line == f"backbone resnet18: {count} of {count} parameters from {prefix}{path}"


@pytest.mark.parametrize("in_channels", [1, 5])
def test_the_first_convolution_is_spread_over_other_channels(
    tmp_path: Path, weights: dict[str, torch.Tensor], in_channels: int
) -> None:
    path = tmp_path / "w.pth"
    torch.save(weights, path)
    backbone, line = load(str(path), in_channels=in_channels)
    own = backbone.body.state_dict()
    stem = own.pop("conv1.weight")
    assert stem.shape == (64, in_channels, 7, 7)
    # A gray image gives the same output as in RGB.
    torch.testing.assert_close(stem.sum(dim=1), weights["conv1.weight"].sum(dim=1))
    assert all(torch.equal(stem[:, channel], stem[:, 0]) for channel in range(in_channels))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in own.items())
    parameters = 11_176_512 + 64 * (in_channels - 3) * 7 * 7
    assert line == f"backbone resnet18: {parameters:,} of {parameters:,} parameters from {path}"


@pytest.mark.parametrize("name", ["convnext_atto", "resnet10t"])
def test_timms_weights_fill_its_backbones(tmp_path: Path, name: str) -> None:
    # As a backbone, timm calls the first stage stages_0 (ConvNeXt) or layer1; in the whole network it is stages.0.
    torch.manual_seed(2)
    whole = timm.create_model(name, pretrained=False).state_dict()
    torch.save(whole, tmp_path / "w.pth")
    backbone, line = load(str(tmp_path / "w.pth"), name=f"timm:{name}")
    whole = {key.replace(".", "_"): tensor for key, tensor in whole.items()}
    own = backbone.body.state_dict()
    assert len(own) > 40
    assert all(torch.equal(tensor, whole[key.replace(".", "_")]) for key, tensor in own.items())
    total = f"{sum(parameter.numel() for parameter in backbone.parameters()):,}"
    assert line == f"backbone timm:{name}: {total} of {total} parameters from {tmp_path / 'w.pth'}"


def test_a_name_is_taken_from_the_cache(hub: Path, weights: dict[str, torch.Tensor]) -> None:
    torch.save(weights, hub / "resnet18-f37072fd.pth")  # what torchvision's IMAGENET1K_V1 is called there
    assert_loaded(load("IMAGENET1K_V1")[0], weights)


def test_a_url_is_downloaded_once(hub: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(url: str, target: str) -> None:
        asked.append(url)
        torch.save(weights, target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert_loaded(load("https://example.org/some/w.pth")[0], weights)
    assert asked == ["https://example.org/some/w.pth"]


@pytest.mark.parametrize("source", ["IMAGENET1K_V1", "https://example.org/w.pth"])
def test_without_a_network_it_says_what_to_put_where(hub: Path, source: str) -> None:
    with pytest.raises(WeightsError, match=r"https://.*no network.*put it into") as error:
        load(source)
    assert str(hub) in str(error.value)


def test_random_weights_are_reported(hub: Path) -> None:
    assert load(None)[1] == "backbone resnet18: random weights"


@pytest.mark.parametrize("source", ["w.pth", "file:///nowhere/w.pth", "IMAGENET1K_V9"])
def test_an_unknown_source_lists_the_known_names(hub: Path, source: str) -> None:
    with pytest.raises(WeightsError, match=r"is not a file, a URL or a name of resnet18's weights .IMAGENET1K_V1"):
        load(source)


def test_weights_of_another_network_are_refused(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "w.pth"
    missing = {name: tensor for name, tensor in weights.items() if name != "layer3.0.conv1.weight"}
    other_shape = weights | {"conv1.weight": torch.zeros(64, 4, 7, 7)}
    for state, words in (
        (missing, "layer3.0.conv1.weight is missing"),
        (other_shape, "conv1.weight has a different shape"),
    ):
        torch.save(state, path)
        with pytest.raises(WeightsError, match=words):
            load(str(path))


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", "half", "a list"])
def test_a_broken_file_is_refused_in_one_line(
    tmp_path: Path, weights: dict[str, torch.Tensor], content: bytes | str
) -> None:
    path = tmp_path / "w.pth"
    torch.save([1, 2] if content == "a list" else weights, path)
    if content == "half":
        content = path.read_bytes()[: path.stat().st_size // 2]
    if isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(WeightsError) as error:
        load(str(path))
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


# --- what the weights were trained with -------------------------------------------------------------------------------

LITE = {"name": "timm:tf_efficientnet_lite0", "weights": "in1k"}
HALF = ([127.5] * 3, [127.5] * 3)
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
CAFFE = ([122.9993, 116.9991, 103.9992], [1.0] * 3)  # 255 · 0.48235, 0.45882, 0.40784; 255 / 255


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("resnet18", "IMAGENET1K_V1", IMAGENET),
        ("resnet18", None, IMAGENET),
        ("resnet10", "some/file.pth", IMAGENET),
        ("efficientnet_v2_l", "IMAGENET1K_V1", HALF),
        ("efficientnet_v2_l", "EfficientNet_V2_L_Weights.IMAGENET1K_V1", HALF),
        ("vgg16", "IMAGENET1K_FEATURES", CAFFE),
        ("vgg16", "/cache/vgg16_features-amdegroot-88682ab5.pth", CAFFE),
        ("vgg16", "some/file.pth", IMAGENET),
        ("timm:tf_efficientnet_lite0", "in1k", HALF),
        ("timm:tf_efficientnet_lite0", "some/file.pth", HALF),
        ("timm:tf_efficientnet_lite0", None, IMAGENET),
        ("timm:efficientnet_lite0", "ra_in1k", IMAGENET),
        ("timm:tf_efficientnet_b0", "ap_in1k", HALF),  # its other weights have ImageNet's
        ("timm:tf_efficientnet_b0", "/hub/models--timm--tf_efficientnet_b0.ap_in1k/model.safetensors", HALF),
        ("timm:no_such_network", "some/file.pth", IMAGENET),  # refused where it is built
    ],
)
def test_normalisation_follows_the_weights(
    name: str, weights: str | None, expected: tuple[list[float], list[float]]
) -> None:
    config = ModelConfig(backbone=BackboneConfig(name=name, weights=weights))
    found, line = follow_weights(config, None)
    assert (found.mean, found.std) == expected
    # ImageNet's stays null.
    assert (found == config) == (expected == IMAGENET)
    assert line.startswith(f"normalised by mean {expected[0][0]:g}, ")
    assert line.endswith(f": that of the weights of {name}" if weights else ": ImageNet's")

    said = config.model_copy(update={"normalise": NormaliseConfig(std=[1.0, 2.0, 3.0])})
    assert follow_weights(said, None)[0].std == [1.0, 2.0, 3.0]
    assert follow_weights(said, None)[0].mean == expected[0]


def test_normalisation_of_other_channels_and_of_checkpoints() -> None:
    gray = ModelConfig.model_validate({"in_channels": 1, "backbone": LITE})
    assert follow_weights(gray, None)[0].mean == [127.5]
    color = ModelConfig(normalise=NormaliseConfig(mean=[1.0, 2.0, 6.0], std=[1.0, 1.0, 4.0]))
    # The checkpoint's normalisation precedes that of the backbone's weights.
    assert follow_weights(ModelConfig.model_validate({"backbone": LITE}), color)[0].normalise == color.normalise
    assert follow_weights(gray, color)[0].normalise == NormaliseConfig(mean=[3.0], std=[2.0])
    assert follow_weights(color, gray)[0] == color


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (
            {"pyramid": {"branches": [{"name": "resnet18", "weights": "IMAGENET1K_V1"}, {"name": "vgg11"}, LITE]}},
            r"model\.normalise: the networks' weights want different values \(resnet18 .*; timm:.*set mean and std",
        ),
        (
            {"backbone": {"name": "timm:tf_efficientnet_b0", "weights": "some/file.pth"}},
            r"model\.normalise: weights of timm:tf_efficientnet_b0 want mean .* or .*, and some/file.pth may be any",
        ),
    ],
    ids=["two networks", "a file"],
)
def test_normalisation_that_must_be_given(tree: dict[str, Any], said: str) -> None:
    config = ModelConfig.model_validate(tree)
    with pytest.raises(ConfigError, match=said):
        follow_weights(config, None)
    own = NormaliseConfig(mean=[0.0] * 3, std=[1.0] * 3)
    assert follow_weights(config.model_copy(update={"normalise": own}), None)[0].normalise == own
