"""The cost of a model: against numbers by hand, torchvision's published ones, and as the command prints it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from networks import MAX_IOU, TINY, TINY_BACKBONE
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from detector.__main__ import main, run_command
from detector.analysis.limits import Rates
from detector.analysis.summary import (
    WARM_UP_RUNS,
    Latency,
    Level,
    Summary,
    count_activations,
    measure_latencies,
    summarise,
)
from detector.commands import summary as summary_command
from detector.commands.summary import format_rows, human, summarise_config, table
from detector.config.loader import load_config
from detector.config.schema import (
    BackboneConfig,
    Config,
    CropConfig,
    DataConfig,
    FPNConfig,
    HeadConfig,
    ModelConfig,
    PyramidConfig,
    ResizeConfig,
)
from detector.data.detection import CocoDataset
from detector.dev.stress import data_overrides
from detector.errors import ConfigError
from detector.models import Model, build_model
from detector.models.backbones import BACKBONES
from detector.tasks import classification, detection

REPOSITORY = Path(__file__).resolve().parent.parent


def make_config(
    backbone: str = "resnet10",
    head: str = "retina",
    levels: tuple[int, ...] = (3, 4, 5),
    num_convs: int = 1,
    norm: str = "none",
) -> ModelConfig:
    own = {"num_convs": num_convs, "norm": norm} if head == "retina" else {}
    return ModelConfig(
        backbone=BackboneConfig(name=backbone),
        fpn=FPNConfig() if head == "classic" else FPNConfig(levels=list(levels), channels=16),
        head=HeadConfig(name=head, **own),
    )


def fused(*names: str) -> ModelConfig:
    branches = [BackboneConfig(name=name) for name in names]
    fpn = FPNConfig(levels=[3, 4], channels=16)
    return ModelConfig(backbone=None, pyramid=PyramidConfig(branches=branches), fpn=fpn)


# --- parameters and multiply-adds -------------------------------------------------------------------------------------


def test_vgg11_by_hand() -> None:
    summary = summarise(make_config("vgg11", "classic"), num_classes=10, size=(32, 64))
    # A 3×3 convolution has 9 · in · out multiply-adds a cell; each stage has a quarter of the cells before.
    stem = 9 * 3 * 64 * (32 * 64)
    stage2 = 9 * 64 * 128 * (16 * 32)
    stage3 = 9 * (128 + 256) * 256 * (8 * 16)
    stage4 = 9 * (256 + 512) * 512 * (4 * 8)
    stage5 = 9 * (512 + 512) * 512 * (2 * 4)
    # The classifier takes 512 · 7 · 7 values whatever the size, and goes to 4096, 4096 and the classes.
    linear = 512 * 49 * 4096 + 4096 * 4096 + 4096 * 10
    assert summary.macs == stem + stage2 + stage3 + stage4 + stage5 + linear
    weights = 9 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 3 * 512 * 512) + linear
    biases = 64 + 128 + 2 * 256 + 4 * 512 + 2 * 4096 + 10
    assert summary.parameters == summary.trainable_parameters == weights + biases
    assert summary.levels == {  # the last map of each stride: stages 3 to 5 before their poolings, and the end
        "C2": Level(256, 8, 16, 4, None),
        "C3": Level(512, 4, 8, 8, None),
        "C4": Level(512, 2, 4, 16, None),
        "C5": Level(512, 1, 2, 32, None),
    }
    assert summary.anchors == 0


@pytest.mark.parametrize(
    ("name", "parameters", "gigamacs"),  # torchvision's documentation, for images of 224 × 224
    [
        ("vgg16", 138_357_544, 15.470),
        ("resnet50", 25_557_032, 4.089),
        ("resnext50_32x4d", 25_028_904, 4.230),  # grouped convolutions
        ("regnet_y_400mf", 4_344_144, 0.402),  # cannot be built on the meta device
        ("swin_t", 28_288_354, 4.491),  # matrix products
        ("mobilenet_v3_small", 2_542_856, 0.057),
    ],
)
def test_classic_networks_cost_what_is_published(name: str, parameters: int, gigamacs: float) -> None:
    summary = summarise(make_config(name, "classic"), num_classes=1000, size=(224, 224))
    assert summary.parameters == parameters
    assert summary.macs / 1e9 == pytest.approx(gigamacs, abs=0.0006)


def test_the_retinanet_costs_what_torchvisions_does() -> None:
    config = load_config("retinanet_r50_fpn.yaml", ["model.fpn.p6_from=p5"]).model
    summary = summarise(config, num_classes=91, size=(800, 1344))
    assert summary.parameters == 34_014_999  # as published
    with torch.device("meta"):
        build = torchvision.models.detection.retinanet_resnet50_fpn
        reference = build(weights=None, weights_backbone=None, num_classes=91).eval()
        image = torch.empty(1, 3, 800, 1344)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        reference.head(list(reference.backbone(image).values()))
    assert summary.macs == counter.get_total_flops() / 2


def test_the_levels_of_the_retinanet() -> None:
    summary = summarise(load_config("retinanet_r50_fpn.yaml").model, num_classes=80, size=(800, 1344))
    assert summary.levels == {  # nine anchors per cell
        "C2": Level(256, 200, 336, 4, None),
        "C3": Level(512, 100, 168, 8, None),
        "C4": Level(1024, 50, 84, 16, None),
        "C5": Level(2048, 25, 42, 32, None),
        "P3": Level(256, 100, 168, 8, 151_200),
        "P4": Level(256, 50, 84, 16, 37_800),
        "P5": Level(256, 25, 42, 32, 9_450),
        "P6": Level(256, 13, 21, 64, 2_457),
        "P7": Level(256, 7, 11, 128, 693),
    }
    assert summary.anchors == 201_600
    # Not trained, by freeze_at 2: the stem of 7·7·3·64, and C2 of three blocks 64 → 64 → 256, of which the first has 64
    # channels and a shortcut and the others have 256. Batch norms are frozen: they have no parameters.
    first, other = 64 * 64 + 9 * 64 * 64 + 64 * 256 + 64 * 256, 256 * 64 + 9 * 64 * 64 + 64 * 256
    assert summary.parameters - summary.trainable_parameters == 7 * 7 * 3 * 64 + first + 2 * other


def test_one_more_convolution_in_the_subnets() -> None:
    one, two = (summarise(make_config(num_convs=num), num_classes=3, size=(64, 96)) for num in (1, 2))
    # Two towers, 16 to 16 channels, on the cells of P3 to P5, which share the weights.
    assert two.macs - one.macs == 2 * 9 * 16 * 16 * (8 * 12 + 4 * 6 + 2 * 3)
    assert two.parameters - one.parameters == 2 * (9 * 16 * 16 + 16)


# --- activations ------------------------------------------------------------------------------------------------------


def tiny_model(layers: list[nn.Module]) -> Model:
    with torch.device("meta"):
        return Model([0.0] * 3, [1.0] * 3, nn.Sequential(*layers), nn.Linear(4 * 8 * 8, 5)).to("meta")


def tiny_activations(model: Model) -> int:
    images = torch.empty(1, 3, 8, 8, dtype=torch.uint8, device="meta")
    return count_activations(model, images, torch.empty(1, 2, device="meta"))


IMAGE, MAP = 3 * 8 * 8 * 4, 4 * 8 * 8 * 4  # bytes: three and four channels of 8 × 8, float32


def test_activations_by_hand() -> None:
    convolution = nn.Conv2d(3, 4, 3, padding=1)
    # Kept: the image for the convolution's weights, and the ReLU's result, for its own sign and for the linear layer,
    # in one piece; not the weights themselves.
    assert tiny_activations(tiny_model([convolution, nn.ReLU(), nn.Flatten()])) == IMAGE + MAP
    # Batch norm keeps what it is given, and a mean and a deviation of each channel.
    layers = [convolution, nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten()]
    assert tiny_activations(tiny_model(layers)) == IMAGE + 2 * MAP + 2 * 4 * 4
    # Dropout keeps which values it dropped, as floats on a CPU: it is really training.
    layers = [convolution, nn.ReLU(), nn.Dropout(0.5), nn.Flatten()]
    assert tiny_activations(tiny_model(layers)) == IMAGE + 3 * MAP
    # Nothing is kept for what is not trained: the linear layer wants its input only.
    assert tiny_activations(tiny_model([convolution.requires_grad_(False), nn.ReLU(), nn.Flatten()])) == MAP


@pytest.mark.parametrize("head", ["retina", "pooled", "classic"])
def test_activations_are_those_of_real_training(head: str) -> None:
    config = make_config("resnet10", head)
    model = build_model(config, num_classes=5).train()
    own = {tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        model(torch.zeros(1, 3, 64, 96, dtype=torch.uint8), torch.tensor([[64, 96]]))
    expected = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)
    assert summarise(config, num_classes=5, size=(64, 96)).activation_bytes == expected


def test_an_image_too_small_for_batch_norm_has_a_summary() -> None:
    summary = summarise(make_config("resnet10", "classic"), num_classes=5, size=(32, 32))
    assert summary.levels["C5"] == Level(512, 1, 1, 32, None)
    assert summary.activation_bytes > 0


def test_a_size_that_the_model_refuses() -> None:
    # Group norm of one channel cannot normalise P5's single cell.
    config = make_config().model_copy(update={"fpn": FPNConfig(levels=[3, 4, 5], channels=1, norm="gn")})
    with pytest.raises(ConfigError, match=r"size 32 × 32: the model cannot take such an image \(Expected more than"):
        summarise(config, num_classes=5, size=(32, 32))


# --- levels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "prefixes"),
    [
        (("vgg11", "resnet10"), ("vgg11", "resnet10")),
        (("resnet10", "vgg11", "resnet10"), ("resnet10[0]", "vgg11", "resnet10[2]")),
    ],
)
def test_levels_of_networks_side_by_side(names: tuple[str, ...], prefixes: tuple[str, ...]) -> None:
    summary = summarise(fused(*names), num_classes=3, size=(50, 70))  # which they pad to 64 × 96
    channels = {"vgg11": (256, 512, 512, 512), "resnet10": (64, 128, 256, 512)}
    assert summary.levels == {
        **{
            f"{prefix}.C{level}": Level(channels[name][level - 2], 64 // 2**level, 96 // 2**level, 2**level, None)
            for name, prefix in zip(names, prefixes, strict=True)
            for level in (2, 3, 4, 5)
        },
        "P3": Level(16, 8, 12, 8, 9 * 96),
        "P4": Level(16, 4, 6, 16, 9 * 24),
    }


def test_an_odd_size_is_rounded_as_the_network_rounds() -> None:
    shapes = {}
    for backbone in ("vgg11", "resnet10"):
        levels = summarise(make_config(backbone), num_classes=3, size=(50, 70)).levels
        shapes[backbone] = [(levels[key].height, levels[key].width) for key in ("C3", "C5", "P3")]
    assert shapes == {"vgg11": [(6, 8), (1, 2), (6, 8)], "resnet10": [(7, 9), (2, 3), (7, 9)]}


def test_a_pooled_classifier_has_levels_without_anchors() -> None:
    summary = summarise(make_config(head="pooled", levels=(4, 5, 6)), num_classes=3, size=(64, 64))
    assert list(summary.levels) == ["C2", "C3", "C4", "C5", "P4", "P5", "P6"]
    assert summary.levels["P6"] == Level(16, 1, 1, 64, None)
    assert summary.anchors == 0


def test_gray_images() -> None:
    color = make_config("vgg11", "classic")
    gray = color.model_copy(update={"in_channels": 1})
    three, one = (summarise(config, num_classes=3, size=(32, 32)) for config in (color, gray))
    assert (three.in_channels, one.in_channels) == (3, 1)
    assert three.macs - one.macs == 9 * 2 * 64 * 32 * 32


@pytest.mark.parametrize(
    ("resize", "size"),
    [
        ({"short": [800], "long": 1333}, (800, 1344)),
        ({"short": [480, 600], "long": 1000}, (608, 1024)),
        ({"short": [128], "long": 128}, (128, 128)),
        ({"short": [800], "long": 500}, (512, 512)),
        ({"fixed": [600, 800]}, (608, 800)),
    ],
)
def test_the_size_of_detection_is_that_of_the_widest_image_padded(
    resize: dict[str, Any], size: tuple[int, int]
) -> None:
    assert detection.largest_input(Config(data=DataConfig(resize=ResizeConfig(**resize)))) == size


def test_the_size_of_classification_is_the_crop_as_it_is() -> None:
    assert classification.largest_input(Config(task="classification", data=DataConfig(crop=CropConfig(size=190)))) == (
        190,
        190,
    )


@pytest.mark.parametrize(
    ("name", "overrides", "classes"),
    [
        ("retinanet_r18_fpn.yaml", {}, 80),
        ("classify_r50_fpn.yaml", {}, 1000),
        ("classify_r50_fpn.yaml", {"classes": ["cat", "dog"]}, 2),
    ],
)
def test_the_number_of_classes(name: str, overrides: dict[str, Any], classes: int) -> None:
    config = load_config(name)
    config = config.model_copy(update={"data": config.data.model_copy(update=overrides)})
    assert summarise_config(name, config, None, (64, 64)).classes == classes


# --- time -------------------------------------------------------------------------------------------------------------


class Timed(nn.Module):
    """Advances a frozen clock by so many milliseconds per call, and records the call."""

    def __init__(self, name: str, durations: list[float], clock: list[float], calls: list[str]) -> None:
        super().__init__()
        self.name, self.durations, self.clock, self.calls = name, iter(durations), clock, calls

    def forward(self, images: Tensor, sizes: Tensor) -> None:
        assert torch.is_inference_mode_enabled()
        assert not self.training
        assert sizes.tolist() == [list(images.shape[-2:])]
        self.calls.append(self.name)
        self.clock[0] += next(self.durations) / 1000


def test_models_take_turns_and_the_warm_up_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    slow = [1000.0] * WARM_UP_RUNS
    first = Timed("first", [*slow, 4, 1, 5, 2, 3], clock, calls)
    second = Timed("second", [*slow, 50, 10, 40, 20, 30], clock, calls)
    images = [torch.zeros(1, 3, 32, 64, dtype=torch.uint8), torch.zeros(1, 1, 64, 32, dtype=torch.uint8)]
    latencies = measure_latencies([first, second], images, torch.device("cpu"), runs=5)
    assert calls == ["first", "second"] * (WARM_UP_RUNS + 5)
    assert latencies[0] == pytest.approx(Latency(3, 2, 4))
    assert latencies[1] == pytest.approx(Latency(30, 20, 40))


# --- the command ------------------------------------------------------------------------------------------------------

SMALL = ["--size", "64", "96", "--classes", "3"]


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict | list:
    assert run_command("summary", [*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_of_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_json(capsys, "--config", MAX_IOU, "model.fpn.channels=64")
    summary = summarise(load_config(MAX_IOU, ["model.fpn.channels=64"]).model, 80, (128, 128))
    assert printed == {
        "config": MAX_IOU,
        "classes": 80,
        "parameters": summary.parameters,
        "trainable_parameters": summary.trainable_parameters,
        "macs": summary.macs,
        "activation_mb": summary.activation_bytes / 1e6,
        "size": [128, 128],
        "levels": {
            "C2": {"channels": 64, "height": 32, "width": 32, "stride": 4},
            "C3": {"channels": 128, "height": 16, "width": 16, "stride": 8},
            "C4": {"channels": 256, "height": 8, "width": 8, "stride": 16},
            "C5": {"channels": 512, "height": 4, "width": 4, "stride": 32},
            "P3": {"channels": 64, "height": 16, "width": 16, "stride": 8, "anchors": 2304},
            "P4": {"channels": 64, "height": 8, "width": 8, "stride": 16, "anchors": 576},
            "P5": {"channels": 64, "height": 4, "width": 4, "stride": 32, "anchors": 144},
        },
        "anchors": 3024,
    }


def test_json_of_a_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "task: classification\ndata: {crop: {size: 70}, classes: [cat, dog]}\n"
        "model: {backbone: {name: resnet10}, head: {name: classic}}\n"
    )
    printed = run_json(capsys, "--config", str(path))
    assert (printed["config"], printed["size"], printed["classes"]) == (str(path), [70, 70], 2)
    assert list(printed["levels"]) == ["C2", "C3", "C4", "C5"]
    assert printed["anchors"] == 0


def test_json_of_several_with_their_times(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(summary_command, "find_limit", lambda *_: "training: not measured")
    names = ["quickstart.yaml", "bccd_r18_scratch.yaml"]
    timed = run_json(capsys, "--compare", *names, *SMALL, "--time", "--runs", "2", "--device", "cpu")
    alone = [run_json(capsys, "--config", name, *SMALL) for name in names]
    for entry, same in zip(timed, alone, strict=True):
        latency, (low, high) = entry.pop("latency_ms"), entry.pop("latency_spread_ms")
        assert 0 < low <= latency <= high
        entry["latency"] = (latency, entry.pop("latency_ratio"))
        assert entry == same | {"latency": entry["latency"]}
    assert [(entry["size"], entry["classes"]) for entry in timed] == [([64, 96], 3)] * 2
    (first, one), (second, ratio) = (entry["latency"] for entry in timed)
    assert (one, ratio) == (1, pytest.approx(second / first))


def test_several_have_their_own_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_json(capsys, "--compare", "quickstart.yaml", "bccd_r18_scratch.yaml")
    assert [entry["size"] for entry in printed] == [[128, 128], [256, 256]]


def test_a_table_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "--config", "retinanet_r50_fpn.yaml", "model.fpn.p6_from=p5", "--classes", "91"]) == 0
    assert capsys.readouterr().out.splitlines()[:8] == [
        "                 retinanet_r50_fpn.yaml",
        "input            3 × 800 × 1344",
        "classes          91",
        "parameters       34.0 M  (34,014,999)",
        "  trainable      33.8 M  (33,792,599)",
        "multiply-adds    254.5 G",
        "activations      743.2 MB",
        "anchors          201,600",
    ]


def test_a_table_of_two() -> None:
    common = {"in_channels": 3, "size": (64, 64), "classes": 5}
    detector = Summary(
        **common,
        parameters=1_250_000,
        trainable_parameters=999,
        macs=2_000_000_000,
        activation_bytes=3500,
        levels={"C2": Level(64, 16, 16, 4, None), "P3": Level(8, 8, 100, 8, 7200), "P4": Level(8, 4, 50, 16, 1800)},
    )
    classifier = Summary(
        **common,
        parameters=5,
        trainable_parameters=5,
        macs=6_000,
        activation_bytes=7,
        levels={"vgg11.C2": Level(128, 16, 16, 4, None), "P2": Level(8, 16, 16, 4, None)},
    )
    latencies = [Latency(20.0, 19.0, 21.0), Latency(5.0, 4.0, 6.0)]
    assert format_rows(table(["a", "b"], [detector, classifier], latencies)).splitlines() == [
        "                     a                              b",
        "input                3 × 64 × 64                    3 × 64 × 64",
        "classes              5                              5",
        "parameters           1.2 M  (1,250,000)             5  (5)",
        "  trainable          999  (999)                     5  (5)",
        "multiply-adds        2.0 G                          6.0 k",
        "activations          3.5 kB                         7 B",
        "anchors              9,000                          –",
        "latency              20.0 ms  (19.0 – 21.0)         5.0 ms  (4.0 – 6.0)",
        "  to the first       × 1.00                         × 0.25",
        "C2  stride 4         64 × 16 ×  16                  –",
        "vgg11.C2  stride 4   –                              128 × 16 × 16",
        "P2  stride 4         –                                8 × 16 × 16",
        "P3  stride 8          8 ×  8 × 100  anchors 7,200   –",
        "P4  stride 16         8 ×  4 ×  50  anchors 1,800   –",
    ]


def test_the_table_says_what_was_timed(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", "quickstart.yaml", *SMALL, "--time", "--runs", "1", "--device", "cpu"]
    assert run_command("summary", arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("latency: Model.forward alone")
    assert "on cpu" in lines[-2]
    assert "1 runs" in lines[-2]
    assert lines[-1].startswith("training: ")
    assert [line.split()[0] for line in lines].count("latency") == 1
    assert not any("to the first" in line for line in lines)


def test_which_side_limits(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loaders that wait 20 ms for an image, against a step that waits 5."""
    monkeypatch.setitem(BACKBONES, "tiny", TINY)
    read, loss = CocoDataset.__getitem__, detection.loss
    monkeypatch.setattr(CocoDataset, "__getitem__", lambda *args: time.sleep(0.02) or read(*args))
    monkeypatch.setattr(detection, "loss", lambda *args: time.sleep(0.005) or loss(*args))
    given = [*data_overrides(shapes), TINY_BACKBONE, "train.batch_size=8", "data.workers=0", "model.fpn.channels=32"]
    arguments = ["--config", "quickstart.yaml", *SMALL[:3], "--time", "--runs", "1", "--device", "cpu"]
    training = run_json(capsys, *arguments, *given)["training"]
    assert 0 < training["loading"] < 50
    assert (training["workers"], training["step_images"]) == (0, 4)
    assert training["limit"] == ("loaders" if training["loading"] < training["computing"] else "device")
    assert run_command("summary", [*arguments, *given, f"data.train.annotations={tmp_path}/none.json"]) == 0
    assert f"training: not measured: {tmp_path}/none.json" in capsys.readouterr().out


def test_the_line_on_which_side_limits() -> None:
    assert Rates(10, 24.96, 2, 4).describe() == (
        "training: 2 loader processes (data.workers) read 10.0 images/s, the device computes 25.0 in steps of 4: the"
        " loaders limit; 5 processes on as many cores would not"
    )
    assert Rates(30, 20, 1, 8).describe() == (
        "training: 1 loader process (data.workers) read 30.0 images/s, the device computes 20.0 in steps of 8: the"
        " device limits"
    )


@pytest.mark.parametrize(
    ("number", "unit", "said"),
    [
        (7, "", "7"),
        (999, "B", "999 B"),
        (1000, "", "1.0 k"),
        (34_014_999, "B", "34.0 MB"),
        (15_470_264_320, "", "15.5 G"),
        (2 * 10**12, "", "2.0 T"),
    ],
)
def test_numbers_are_abbreviated(number: int, unit: str, said: str) -> None:
    assert human(number, unit) == said


ONE, TWO = ["--config", "quickstart.yaml"], ["--compare", "quickstart.yaml", "bccd_r18_scratch.yaml"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["command line:", "either --config or --compare"]),
        ([*ONE, *TWO], ["command line:", "either --config or --compare"]),
        ([*TWO, "seed=1"], ["command line: seed=1", "overrides need --config"]),
        ([*TWO, "--json", "seed=1"], ["command line: seed=1", "overrides need --config"]),
        ([*ONE, "--size", "31", "64"], ["--size 31 64", "32 to 65,535 pixels"]),
        ([*ONE, "--size", "64", "-64"], ["--size 64 -64", "32 to 65,535 pixels"]),
        ([*ONE, "--size", "64", "65536"], ["--size 64 65536", "32 to 65,535 pixels"]),
        ([*ONE, "--classes", "0"], ["--classes: '0'", "at least 1"]),
        ([*ONE, "--time", "--runs", "0"], ["--runs: '0'", "at least 1"]),
        ([*ONE, "--runs", "5"], ["--runs has no effect without --time"]),
        ([*ONE, "--device", "cpu"], ["--device has no effect without --time"]),
        ([*ONE, "--time", "--device", "cuda:77"], ["--device cuda:77", "no such device"]),
        (["--config", "quickstart.yml"], ["quickstart.yml", "did you mean quickstart.yaml"]),
        (["--compare", "quickstart.yaml", "nothing.yaml"], ["nothing.yaml: no such config file"]),
        ([*ONE, "model.matcher.name=nearest"], ["quickstart.yaml: model.matcher.name", "'nearest'", "max_iou"]),
        ([*ONE, "model.backbone.name=resnet19"], ["quickstart.yaml: model.backbone.name", "'resnet19'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_clear_line(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("summary", arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def test_an_unknown_task_is_refused_as_training_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("task: sorting\n")
    assert run_command("summary", ["--config", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}:1: task: unknown task 'sorting'; use detection")


def test_the_launcher_can_be_run() -> None:
    assert os.access(REPOSITORY / "tools/summary.py", os.X_OK)
