"""The model: normalising, padding, input channels, shapes, and independence of the padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from detector.config.schema import AnchorConfig, BackboneConfig, FPNConfig, HeadConfig, ModelConfig
from detector.errors import ConfigError
from detector.models import Model, build_model
from detector.models.backbones import build_backbone
from detector.models.precision import autocast
from detector.models.pyramid import Pyramid
from detector.ops.anchors import level_sizes


def make_config(levels: list[int] | None = None, backbone: str = "resnet18", norm: str = "none") -> ModelConfig:
    return ModelConfig(
        backbone=BackboneConfig(name=backbone),
        fpn=FPNConfig(levels=levels or [3, 4, 5, 6, 7], channels=16),
        anchors=AnchorConfig(ratios=[0.5, 1.0], scales=[1.0]),
        head=HeadConfig(num_convs=1, norm=norm),
    )


def make_model(levels: list[int] | None = None, num_classes: int = 3) -> Model:
    torch.manual_seed(0)
    return build_model(make_config(levels), num_classes).eval()


def make_images(num: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num, 3, height, width), dtype=torch.uint8, generator=generator)


def make_normaliser(mean: list[float], std: list[float]) -> Model:
    return Model(mean, std, torch.nn.Identity(), torch.nn.Identity())


def test_normalise_by_hand() -> None:
    model = make_normaliser([100.0, 50.0, 0.0], [10.0, 25.0, 1.0])
    pixels = torch.tensor([120, 0, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    normal = model.normalise(pixels, torch.tensor([[2, 1]]))
    assert normal.dtype == torch.float32
    # (120 - 100) / 10, (0 - 50) / 25, 255; the second column is padding
    assert normal[0, :, 0, 0].tolist() == [2, -2, 255]
    assert normal[0, :, 1, 0].tolist() == [2, -2, 255]
    assert (normal[..., 1] == 0).all()


def test_padding_is_exactly_0_whatever_its_pixels() -> None:
    model = make_normaliser([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    images, sizes = make_images(3, 20, 30), torch.tensor([[20, 30], [11, 30], [7, 13]])
    normal = model.normalise(images, sizes)
    for image, (height, width) in enumerate(sizes.tolist()):
        assert (normal[image, :, height:] == 0).all()
        assert (normal[image, :, :, width:] == 0).all()
        inside = images[image, :, :height, :width].float()
        expected = (inside - model.mean[0]) / model.std[0]
        assert_close(normal[image, :, :height, :width], expected)


def test_predictions_do_not_depend_on_the_pixels_of_the_padding() -> None:
    model, images, sizes = make_model(), make_images(2, 64, 96), torch.tensor([[64, 50], [40, 96]])
    other = images.clone()
    other[0, :, :, 50:] = 255
    other[1, :, 40:] = 7
    with torch.no_grad():
        predictions, same = model(images, sizes), model(other, sizes)
        changed = model(images, torch.tensor([[64, 96], [64, 96]]))
    assert torch.equal(predictions.cls_logits, same.cls_logits)
    assert torch.equal(predictions.box_channels, same.box_channels)
    assert not torch.allclose(predictions.cls_logits, changed.cls_logits, atol=1e-4)


@pytest.mark.parametrize("levels", [[3, 4, 5, 6, 7], [2, 3, 4, 5], [2, 3, 4, 5, 6, 7], [4, 5, 6]], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_anchors_and_outputs_agree_at_an_odd_size(levels: list[int], training: bool) -> None:
    model = make_model(levels).train(training)
    with torch.no_grad():
        predictions = model(make_images(2, 97, 131), torch.tensor([[97, 131], [80, 131]]))
    counts = [2 * height * width for height, width in level_sizes(97, 131, levels)]  # two ratios
    assert predictions.level_counts == counts
    assert predictions.anchors.shape == (sum(counts), 4)
    assert predictions.cls_logits.shape == (2, sum(counts), 3)
    assert predictions.box_channels.shape == (2, sum(counts), 4)
    assert predictions.cls_logits.isfinite().all()


@pytest.mark.parametrize("levels", [[2, 3, 4, 5], [3, 4, 5, 6, 7]], ids=str)
def test_anchors_cover_the_image(levels: list[int]) -> None:
    with torch.no_grad():
        anchors = make_model(levels)(make_images(1, 64, 96), torch.tensor([[64, 96]])).anchors
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    stride = 2 ** levels[0]
    assert centers.amin(dim=0).tolist() == [0, 0]
    assert centers.amax(dim=0).tolist() == [96 - stride, 64 - stride]


def test_resnet34_pyramid_at_224() -> None:
    pyramid = Pyramid(build_backbone(BackboneConfig(name="resnet34"), 3, finest=2), FPNConfig(levels=[2, 3, 4, 5]))
    assert (pyramid.levels, pyramid.channels) == ((2, 3, 4, 5), 256)
    with torch.no_grad():
        features = pyramid(torch.randn(1, 3, 224, 224))
    assert [tuple(feature.shape) for feature in features] == [(1, 256, side, side) for side in (56, 28, 14, 7)]


def test_constants_are_not_saved() -> None:
    names = set(make_model().state_dict())
    assert names == {name for name in names if name.startswith(("pyramid.backbone.body.", "pyramid.fpn.", "head."))}
    assert not any("anchors" in name for name in names)
    assert "head.cls_output.bias" in names


def test_memory_format_does_not_matter() -> None:
    model, images, sizes = make_model(), make_images(2, 64, 64), torch.tensor([[64, 64], [50, 64]])
    with torch.no_grad():
        expected = model(images, sizes)
        last = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last), sizes)
    assert_close(last.cls_logits, expected.cls_logits, rtol=1e-4, atol=1e-5)
    assert_close(last.box_channels, expected.box_channels, rtol=1e-4, atol=1e-5)


def test_unknown_head_lists_the_known_ones() -> None:
    config = make_config().model_copy(update={"head": HeadConfig(name="retnia")})
    with pytest.raises(
        ConfigError, match=r"^model\.head\.name: unknown head 'retnia'; use retina, pooled, classic or semantic$"
    ):
        build_model(config, 3)


# --- input channels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("in_channels", "mean", "std"),
    [
        (3, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        # (123.675 + 116.28 + 103.53) / 3 and (58.395 + 57.12 + 57.375) / 3
        (1, [114.495], [57.63]),
        (5, [114.495] * 5, [57.63] * 5),
    ],
)
def test_constants_of_normalising_follow_the_channels(in_channels: int, mean: list[float], std: list[float]) -> None:
    config = make_config().model_copy(update={"in_channels": in_channels})
    assert config.mean == pytest.approx(mean)
    assert config.std == pytest.approx(std)
    model = build_model(config, 3)
    assert_close(model.mean.flatten(), torch.tensor(mean))
    assert_close(model.std.flatten(), torch.tensor(std))
    images = torch.randint(0, 256, (1, in_channels, 4, 4), dtype=torch.uint8)
    expected = (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert_close(model.normalise(images, torch.tensor([[4, 4]])), expected)


def test_16_bit_values_by_hand() -> None:
    model = make_normaliser([100.0, 50.0], [10.0, 25.0])
    pixels = torch.tensor([65535, 25700 + 257], dtype=torch.uint16).view(1, 2, 1, 1)
    # 65535 / 257 = 255 and 25957 / 257 = 101: (255 - 100) / 10, (101 - 50) / 25
    assert_close(model.normalise(pixels, torch.tensor([[1, 1]])).flatten(), torch.tensor([15.5, 2.04]))


@pytest.mark.parametrize("in_channels", [1, 3, 5])
def test_16_bit_images_are_predicted_like_8_bit_ones(in_channels: int) -> None:
    torch.manual_seed(0)
    config = make_config(backbone="resnet10").model_copy(update={"in_channels": in_channels})
    model = build_model(config, 3).eval()
    images = torch.randint(0, 256, (2, in_channels, 64, 64), dtype=torch.uint8)
    sizes = torch.tensor([[64, 64], [50, 60]])
    with torch.no_grad():
        expected = model(images, sizes)
        fine = model((images.int() * 257).to(torch.uint16), sizes)  # 255 · 257 = 65535
        other = model((images.int() * 200).to(torch.uint16), sizes)
    assert_close(fine.cls_logits, expected.cls_logits, rtol=1e-4, atol=1e-6)
    assert_close(fine.box_channels, expected.box_channels, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(other.box_channels, expected.box_channels, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("norm", ["none", "gn"])
def test_layers_in_half_precision_give_the_bits_of_autocast(norm: str) -> None:
    torch.manual_seed(0)
    model = build_model(make_config(norm=norm), 3).fold_norms()
    outputs = []
    with torch.inference_mode(), autocast("bf16", torch.device("cpu")):
        for _ in range(2):
            outputs.append(model(make_images(2, 64, 96), torch.tensor([[64, 96], [50, 90]])))
            model.fix_precision("bf16")
    assert model.head.cls_output.weight.dtype == torch.bfloat16
    assert torch.equal(outputs[0].cls_logits, outputs[1].cls_logits)
    assert torch.equal(outputs[0].box_channels, outputs[1].box_channels)
