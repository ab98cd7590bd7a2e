"""Training by torch.compile, and what makes it possible: a loss of fixed shapes that never asks the device."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch._dynamo
import torch._inductor.config
from networks import MAX_IOU, TINY, TINY_BACKBONE
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from detector.config.loader import load_config
from detector.config.schema import LossConfig, MatcherConfig, ModelConfig
from detector.errors import ConfigError
from detector.inference.predictor import Predictor
from detector.models import build_model
from detector.models.backbones import BACKBONES
from detector.ops.anchors import level_sizes
from detector.ops.assignment import ASSIGNERS
from detector.ops.losses import BOX_LOSSES, CLASS_LOSSES
from detector.structures import Category, Predictions, Targets
from detector.tasks import detection
from detector.training.fitting import fit
from detector.training.run_folder import RunFolder

CPU = torch.device("cpu")
ASKING = ("aten._local_scalar_dense", "aten.item", "aten.nonzero", "aten.masked_select", "aten._unique", "aten.unique")


def asks(node: Node) -> bool:
    """Whether an operation's outcome has to be known before the next can be queued: a number, or a count of rows."""
    name = str(node.target)
    if name.startswith(("aten.index.", "aten.index_put")):
        return any(index is not None and index.meta["val"].dtype == torch.bool for index in node.args[1])
    return name.startswith(ASKING)


def traced_loss(config: ModelConfig) -> list[Node]:
    """All operations of the loss and its gradient, as they are dispatched."""
    sizes = level_sizes(64, 96, [3, 4, 5])
    counts = [height * width for height, width in sizes]
    anchors = torch.rand(sum(counts), 4).sort(dim=1).values * 64
    boxes = torch.tensor([[[4.0, 4.0, 40.0, 40.0], [0, 0, 0, 0]], [[8.0, 8.0, 20.0, 60.0], [1.0, 2.0, 30.0, 9.0]]])
    targets = Targets(boxes[:, :1], torch.tensor([[1], [0]]), regions=boxes[:, 1:])

    def gradients(logits: Tensor, deltas: Tensor) -> tuple[Tensor, ...]:
        logits, deltas = logits.detach().requires_grad_(), deltas.detach().requires_grad_()
        losses = detection.loss(Predictions(logits, deltas, anchors, counts), targets, config)
        return torch.autograd.grad(sum(losses.parts.values()), [logits, deltas])

    graph = make_fx(gradients)(torch.randn(2, sum(counts), 3), torch.randn(2, sum(counts), 4)).graph
    return [node for node in graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("matcher", ASSIGNERS)
@pytest.mark.parametrize("cls", CLASS_LOSSES)
@pytest.mark.parametrize("box", BOX_LOSSES)
def test_the_loss_never_asks_the_device(matcher: str, cls: str, box: str) -> None:
    nodes = traced_loss(ModelConfig(matcher=MatcherConfig(name=matcher), loss=LossConfig(cls=cls, box=box)))
    assert len(nodes) > 20
    assert [node for node in nodes if asks(node)] == []


@pytest.mark.parametrize(
    ("operation", "found"),
    [
        (lambda x: x.index_put((x > 0,), torch.zeros(())), True),
        (lambda x: x[x > 0], True),
        (lambda x: (x > 0).nonzero(), True),
        (lambda x: x[torch.tensor([2, 0])], False),
        (lambda x: torch.where(x > 0, x, 0), False),
    ],
)
def test_asking_the_device_would_be_found(operation: Callable[[Tensor], Tensor], found: bool) -> None:
    graph = make_fx(operation, tracing_mode="symbolic")(torch.randn(3)).graph
    assert any(asks(node) for node in graph.nodes if node.op == "call_function") == found


def test_without_a_compiler_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    reason = r"compile: there is no C\+\+ compiler here \(g\+\+, clang\+\+ or cl\)"
    with pytest.raises(ConfigError, match=f"^train\\.{reason}"):
        fit(load_config("quickstart.yaml", ["train.compile=true"]), RunFolder(tmp_path / "run"), CPU)
    with pytest.raises(ConfigError, match=f"^model\\.predict\\.{reason}"):
        make_predictor("model.predict.compile=true")


def make_predictor(*overrides: str) -> Predictor:
    torch.manual_seed(0)
    config = load_config(MAX_IOU, ["model.predict.score_threshold=0", *overrides])
    categories = [Category(0, "a"), Category(1, "b")]
    return Predictor(build_model(config.model, 2), config, categories, CPU)


def test_a_compiled_predictor_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def compile_eagerly(network: Any, **given: Any) -> Any:
        asked.append(given)
        return compile_for(network, backend="eager", dynamic=given["dynamic"])

    compile_for = torch.compile
    monkeypatch.setattr(torch, "compile", compile_eagerly)
    image = np.random.default_rng(0).integers(256, size=(96, 128, 3), dtype=np.uint8)
    found, expected = (make_predictor(*given).predict([image])[0] for given in (["model.predict.compile=true"], []))
    assert asked == [{"dynamic": False}]
    assert len(expected.scores) > 0
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides for a tiny network on six wide and six high images of different sizes."""
    monkeypatch.setitem(BACKBONES, "tiny", TINY)  # compiling a kernel takes a second
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(12):
        width, height = sorted(rng.integers(70, 130, 2).tolist(), reverse=index % 2 == 0)
        cv2.imwrite(str(tmp_path / f"{index}.png"), rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        images.append({"id": index, "file_name": f"{index}.png", "width": width, "height": height})
        annotations.append({"id": index, "image_id": index, "category_id": 1, "bbox": [8, 8, 40, 40]})
    tree = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "noise"}]}
    for annotation in annotations:
        annotation |= {"area": 1600, "iscrowd": 0}
    (tmp_path / "all.json").write_text(json.dumps(tree))
    splits = [f"data.{name}={{annotations: {tmp_path}/all.json, images: {tmp_path}}}" for name in ("train", "val")]
    return [
        *splits,
        TINY_BACKBONE,
        "model.fpn={levels: [4, 5], channels: 8}",
        "model.head={num_convs: 0}",
        "model.anchors={ratios: [1.0], scales: [1.0]}",
        "data.workers=0",
        "train.batch_size=2",
        "train.ema=0.9",
        "train.optimizer={name: sgd, lr: 0.005, lr_batch_size: 2}",
        "eval.every_epochs=100",
    ]


def train(folder: Path, overrides: list[str]) -> list[dict]:
    """The steps' rows of a run."""
    run = RunFolder(folder)
    assert fit(load_config(MAX_IOU, overrides), run, CPU)
    return [row for row in map(json.loads, run.metrics.read_text().splitlines()) if "loss" in row]


class _Asked(TorchDispatchMode):
    """Counts the operations of the main process whose outcome Python waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(operation).startswith(ASKING):
            self.names.append(str(operation))
        return operation(*args, **(kwargs or {}))


def test_a_training_step_asks_the_device_for_its_row_only(
    tmp_path: Path, data: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Reading in the main process and the average's count, which is on the CPU everywhere, ask a CPU's tensors.
    overrides = [*data, "data.resize={fixed: [64, 64]}", "data.workers=1", "train.ema=null", "train.steps=3"]
    asked = _Asked()

    asked_by_row, read_by_row = [], []
    reads = []
    append, tolist = RunFolder.append, Tensor.tolist

    def count(run: RunFolder, row: dict) -> None:
        if "loss" in row:
            asked_by_row.append(list(asked.names))
            read_by_row.append(reads.count(torch.float32))  # what else is read is the batch's ids
        append(run, row)

    monkeypatch.setattr(RunFolder, "append", count)
    monkeypatch.setattr(Tensor, "tolist", lambda tensor: reads.append(tensor.dtype) or tolist(tensor))
    with asked:
        train(tmp_path / "run", overrides)
    assert [later - read_by_row[0] for later in read_by_row] == [0, 1, 2]
    assert asked_by_row[1][len(asked_by_row[0]) :] == []
    assert asked_by_row[2] == asked_by_row[1]


@pytest.mark.skipif(not shutil.which("g++"), reason="compiling needs a C++ compiler, and there is no g++")
def test_compiled_training_has_the_losses_of_eager(
    tmp_path: Path, data: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 1)  # no pool of processes
    overrides = [*data, "data.resize={fixed: [64, 96]}", "train.steps=20"]
    eager = train(tmp_path / "eager", overrides)
    compiled = train(tmp_path / "compiled", [*overrides, "train.compile=true"])
    assert len(eager) == 20
    assert [row["loss"] for row in compiled] == pytest.approx([row["loss"] for row in eager], abs=1e-4)
    saved = [torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("eager", "compiled")]
    assert saved[0]["model"].keys() == saved[1]["model"].keys()
    assert_close(saved[1]["ema"], saved[0]["ema"], rtol=1e-3, atol=1e-4)


def test_nothing_is_compiled_after_the_first_epoch(
    tmp_path: Path, data: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # All but the last step of compiling, which makes C++ of the graph and does not look at shapes again.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    graphs: list[int] = []
    append = RunFolder.append

    def count(run: RunFolder, row: dict) -> None:
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        append(run, row)

    monkeypatch.setattr(RunFolder, "append", count)
    jitter = "data.augment={scale_jitter: [0.6, 1.6]}"
    overrides = [*data, "data.resize={short: [96], long: 160}", jitter, "train.epochs=2", "train.compile=true"]
    rows = train(tmp_path / "run", overrides)
    assert len(rows) == 12  # 12 images in batches of 2, twice
    # Network and loss, each for the first shape, then for any; and again where batches are square.
    assert 4 <= graphs[5] <= 8
    assert graphs[-1] == graphs[5]
    assert all("function assign" in reason for reason in torch._dynamo.utils.counters["graph_break"])
