"""Training by torch.compile, and what makes it possible: a loss of fixed shapes that never asks the device."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from detector import training
from detector.anchors import level_sizes
from detector.config import AnchorConfig, FPNConfig, LossConfig, MatcherConfig, ModelConfig
from detector.configfile import load_config
from detector.errors import ConfigError
from detector.losses import BOX_LOSSES, CLASS_LOSSES
from detector.matching import MATCHERS
from detector.models import build_model
from detector.run import RunFolder
from detector.structures import Predictions, Targets
from detector.tasks import detection
from detector.training import fit

CPU = torch.device("cpu")
ASKING = ("_local_scalar_dense", "nonzero", "index.Tensor", "index_put", "masked_select", "unique", "item")


def traced_loss(config: ModelConfig) -> list[str]:
    """Names of all operations of the loss and its gradient, as they are dispatched."""
    sizes = level_sizes(64, 96, [3, 4, 5])
    counts = [height * width for height, width in sizes]
    anchors = torch.rand(sum(counts), 4).sort(dim=1).values * 64
    boxes = torch.tensor([[[4.0, 4.0, 40.0, 40.0], [0, 0, 0, 0]], [[8.0, 8.0, 20.0, 60.0], [1.0, 2.0, 30.0, 9.0]]])
    labels = torch.tensor([[1, -1], [0, -2]])

    def gradients(logits: Tensor, deltas: Tensor) -> tuple[Tensor, ...]:
        logits, deltas = logits.detach().requires_grad_(), deltas.detach().requires_grad_()
        losses = detection.loss(Predictions(logits, deltas, anchors, counts), Targets(boxes, labels), config)
        return torch.autograd.grad(sum(losses.parts.values()), [logits, deltas])

    graph = make_fx(gradients)(torch.randn(2, sum(counts), 3), torch.randn(2, sum(counts), 4)).graph
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("matcher", MATCHERS)
@pytest.mark.parametrize("cls", CLASS_LOSSES)
@pytest.mark.parametrize("box", BOX_LOSSES)
def test_the_loss_never_asks_the_device(matcher: str, cls: str, box: str) -> None:
    names = traced_loss(ModelConfig(matcher=MatcherConfig(name=matcher), loss=LossConfig(cls=cls, box=box)))
    assert len(names) > 20
    assert [name for name in names if any(word in name for word in ASKING)] == []


def test_asking_the_device_would_be_found() -> None:
    def boolean(x: Tensor) -> Tensor:
        return x.index_put((x > 0,), torch.zeros(()))

    names = [str(node.target) for node in make_fx(boolean)(torch.randn(3)).graph.nodes if node.op == "call_function"]
    assert any(word in name for name in names for word in ASKING)


def test_without_a_compiler_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(training.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"train\.compile: there is no C\+\+ compiler here \(g\+\+, clang\+\+ or cl\)"):
        fit(load_config("quickstart.yaml", ["train.compile=true"]), RunFolder(tmp_path / "run"), CPU)


@pytest.mark.skipif(not shutil.which("g++"), reason="compiling needs a C++ compiler, and there is no g++")
def test_compiled_training_has_the_same_losses_and_compiles_twice(tmp_path: Path, shapes: Path) -> None:
    overrides = [
        f"data.{split}.annotations={shapes}/annotations/{split}.json" for split in ("train", "val")
    ] + [f"data.{split}.images={shapes}/images" for split in ("train", "val")]
    overrides += [
        "model.backbone={name: resnet10, norm: bn}",
        "model.fpn={levels: [3, 4, 5], channels: 16}",
        "model.head={num_convs: 1}",
        "model.anchors={ratios: [1.0], scales: [1.0]}",
        # Pictures are square; jitter makes shapes of 64 to 96 pixels, and every epoch has all of them.
        "data.resize={short: [64, 96], long: 96}",
        "data.workers=0",
        "train.batch_size=2",
        "train.steps=20",
        "train.ema=0.9",
        "train.optimizer={name: sgd, lr: 0.005, lr_batch_size: 2}",
        "eval.every_epochs=100",
    ]
    losses = {}
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for compiles in (False, True):
        run = RunFolder(tmp_path / str(compiles))
        assert fit(load_config("quickstart.yaml", [*overrides, f"train.compile={compiles}"]), run, CPU)
        rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        losses[compiles] = [row["loss"] for row in rows if "loss" in row]
    assert losses[True] == pytest.approx(losses[False], abs=1e-4, rel=1e-4)
    # One graph for the first shape, one for all others; nothing of the model is left to Python.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    assert not torch._dynamo.utils.counters["graph_break"]
    names = {compiles: torch.load(tmp_path / str(compiles) / "last.pt", weights_only=True) for compiles in losses}
    assert names[True]["model"].keys() == names[False]["model"].keys()
