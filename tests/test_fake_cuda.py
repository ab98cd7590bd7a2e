"""The real code on a CUDA device that does not exist: every operation's devices are checked, no value is computed.

Torch's FakeTensorMode knows shapes, types and devices, and refuses what a GPU would refuse: tensors of two devices in
one operation, a CUDA tensor as a NumPy array. It does not know values, kernels, DDP and the fp16 scaler. A training
step, an evaluation and a prediction of every config run so, and faults that were planted are found.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from networks import MAX_IOU, on_resnet10, undrawn
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from detector.config.loader import CONFIG_FOLDERS, load_config
from detector.config.schema import Config, MatcherConfig
from detector.data.loading import collate
from detector.data.loading.feed import feed
from detector.errors import DataError
from detector.models import Model, build_model
from detector.models.norms import FOLDABLE, FrozenNorm
from detector.ops import postprocess
from detector.ops.assignment import assign
from detector.ops.coders import DeltaCoder
from detector.ops.grids import Points
from detector.structures import Batch, Category, ClassTargets, MaskTargets, Predictions, Targets
from detector.tasks import detection, get_task, segmentation
from detector.tasks.predicting import predict_merged
from detector.training import average, loop, optimizer
from detector.training.average import AveragedWeights, SavedBuffers
from detector.training.loop import TrainingState, train

try:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.fx.experimental import symbolic_shapes
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    MISSING = [
        name
        for module, name in (
            (symbolic_shapes, "_constrain_range_for_size"),
            (ShapeEnv, "create_unbacked_symint"),
            (torch._C, "_current_graph_task_id"),
        )
        if not hasattr(module, name)
    ]
except ImportError as error:
    pytest.skip(f"torch {torch.__version__}: {error}", allow_module_level=True)
if MISSING:
    pytest.skip(f"torch {torch.__version__} has no {MISSING[0]}", allow_module_level=True)

aten = torch.ops.aten
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
QUICKSTART = MAX_IOU
DETECTION, CLASSIFICATION = "retinanet_r50_fpn.yaml", "classify_r50_fpn.yaml"
# The others are built on a small ResNet: their networks are made of the same operations.
OWN_NETWORK = ["retinanet_convnext_t_fpn.yaml", "retinanet_x50_32x4d_fpn.yaml", "classify_vgg16_bn.yaml"]
SIDES, CLASSES = (64, 96), 3
ASKING = (
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "nms",
    "_unique2",
    "bincount",
    "equal",
)


def combination(name: str) -> str:
    """What a config is made of, apart from numbers, and from a network that is replaced."""
    config = load_config(name)
    model, optimizer = config.model, config.train.optimizer
    norm = model.backbone.norm.removeprefix("sync_") if model.backbone else len(model.pyramid.branches)
    head = [model.head.name, model.head.norm, model.head.quality, model.matcher.name, model.box_coder.name]
    rates = [optimizer.layer_decay == 1, optimizer.backbone_rate == 1, bool(config.auto)]
    network = name if name in OWN_NETWORK else norm
    return repr([config.task, network, *head, model.loss.cls, model.loss.box, *rates])


# One config of each combination.
NAMES = sorted({combination(path.name): path.name for path in sorted(CONFIG_FOLDERS[0].glob("*.yaml"))}.values())


# --- the device -------------------------------------------------------------------------------------------------------


class Concrete(ShapeEnv):
    """What depends on values is fixed: nonzero finds three rows, a number that is read is 3 or 0.0."""

    truth = True

    def create_unbacked_symint(self, *_: Any, **__: Any) -> int:
        return 3

    def create_unbacked_symfloat(self, *_: Any, **__: Any) -> float:
        return 0.0

    def create_unbacked_symbool(self, *_: Any, **__: Any) -> bool:
        return self.truth


class Checks(TorchDispatchMode):
    """Refuses what fake tensors let pass and a GPU does not, and counts what is launched and what is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self.waits: Counter[str] = Counter()  # operations whose outcome the program waits for

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, operation._opname
        if name in ("index", "index_put", "index_put_", "_unsafe_index"):
            allowed = {args[0].device, CPU} if args[0].device == CUDA else {args[0].device}
            wrong = [index for index in args[1] if index is not None and index.device not in allowed]
            if wrong:
                raise RuntimeError(f"{operation}: an index on {wrong[0].device} into a tensor on {args[0].device}")
        if name.startswith("_fused_") and name.endswith("_"):  # optimizers; they have no fake implementation
            tensors = [tensor for part in args if isinstance(part, list) for tensor in part]
            assert {tensor.device for tensor in tensors} == {CUDA}, operation
            self.launches += 1
            return None
        result = operation(*args, **kwargs)
        self._count(operation, args, kwargs, result)
        return result

    def _count(self, operation: Any, args: Any, kwargs: Any, result: Any) -> None:
        name = operation._opname
        given = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
        lists = [arg for arg in args if isinstance(arg, list | tuple) and name.startswith(("_foreach", "cat", "stack"))]
        given += [tensor for part in lists for tensor in part if isinstance(tensor, Tensor)]
        devices = {tensor.device for tensor in (*given, result) if isinstance(tensor, Tensor)}
        if CUDA not in devices or operation.namespace == "prim":
            return
        if name.startswith("_foreach") and len(devices) > 1 and "copy" not in name:
            raise RuntimeError(f"{operation}: tensors on {devices}")
        types = {tensor.dtype for part in lists for tensor in part if isinstance(tensor, Tensor)}
        if not operation.is_view:
            # Of one type, many tensors are one launch; of mixed types, each is one.
            self.launches += len(lists[0]) if name.startswith("_foreach") and len(types) > 1 else 1
        named = kwargs | {own.name: arg for own, arg in zip(operation._schema.arguments, args, strict=False)}
        indices = args[1] if name in ("index", "index_put", "index_put_") else []
        has_mask = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
        # In inference mode, ``to``, ``item`` and ``is_nonzero`` come whole, elsewhere as what they are made of.
        is_copy = name in ("to", "_to_copy", "copy_") and not named.get("non_blocking")
        moves = is_copy and len({tensor.device for tensor in (*given, result)}) > 1
        if moves or has_mask or name in ASKING:
            self.waits["copy" if moves else name] += 1


def lenient(a: Any, min: Any = None, max: Any = None) -> None:
    """Constrains a count of rows, which is a plain number here, to nothing."""


def as_array(tensor: Tensor, *, force: bool = False) -> np.ndarray:
    """``Tensor.numpy`` as a machine with a GPU has it; there are no values, so zeros."""
    if tensor.device != CPU:
        raise TypeError(f"can't convert {tensor.device} device type tensor to numpy")
    return np.zeros(tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))


def as_list(tensor: Tensor) -> Any:
    """``Tensor.tolist``: one copy from the GPU; zeros."""
    return as_array(tensor.cpu()).tolist()


class Stream:
    """A stream of the GPU that does not exist; ``log`` has what it and what the others were told, in order."""

    log: ClassVar[list[tuple[str, ...]]]
    current = "compute"

    def __init__(self, name: Any) -> None:
        self.name = name if isinstance(name, str) else "copy"

    def __enter__(self) -> None:
        self.before, Stream.current = Stream.current, self.name

    def __exit__(self, *_: object) -> None:
        Stream.current = self.before

    def record_event(self) -> str:
        events = sum(entry[0] == "event" for entry in self.log)
        self.log.append(("event", self.name))
        return f"copy {events + 1}"

    def wait_event(self, event: str) -> None:
        self.log.append(("wait", self.name, event))


def hold(tensor: Tensor, stream: Stream) -> None:
    """``Tensor.record_stream``."""
    assert tensor.device == CUDA
    Stream.log.append(("hold", stream.name))


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Checks]:
    """Until the end of the test, tensors have no values, and there is a CUDA device."""
    monkeypatch.setattr(symbolic_shapes, "_constrain_range_for_size", lenient)
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda self, memo: self, raising=False)
    monkeypatch.setattr(FakeTensor, "numpy", as_array, raising=False)
    monkeypatch.setattr(FakeTensor, "tolist", as_list)
    monkeypatch.setattr(nn.Module, "to", lambda module, *_, **__: module)  # does not work here: see ``moved``
    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(torch._C, "_current_graph_task_id", lambda: 1)  # activation checkpointing asks for it
    with FakeTensorMode(shape_env=Concrete(), allow_non_fake_inputs=False), Checks() as found:
        # Autocast asks for these. The mode, if it saw them, would ask the driver.
        monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: Stream(Stream.current))
        monkeypatch.setattr(FakeTensor, "record_stream", hold, raising=False)
        monkeypatch.setattr(Stream, "log", [], raising=False)
        yield found


def moved(module: nn.Module) -> Any:
    """``module.to(CUDA)``, which does not work here: registered parameters and buffers are on the GPU, nothing else."""
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    store[name] = nn.Parameter(fake, requires_grad=tensor.requires_grad) if is_parameter else fake
    return module


def backward(loss: Tensor) -> None:
    """``loss.backward()`` without autograd's engine, which asks for the device's threads."""
    order: list[Any] = []
    seen: set[Any] = set()
    stack: list[tuple[Any, bool]] = [(loss.grad_fn, False)]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(before, False) for before, _ in node.next_functions if before is not None]
    gradients: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    gradients[loss.grad_fn][0] = torch.ones_like(loss)
    with torch.no_grad():
        for node in reversed(order):
            given = gradients.pop(node, {})
            if given and hasattr(node, "variable"):
                variable, gradient = node.variable, fit(given[0], node.variable)
                variable.grad = gradient if variable.grad is None else variable.grad + gradient
            elif given:
                inputs = [fit(given[i], meta) if i in given else None for i, meta in enumerate(node._input_metadata)]
                is_python = isinstance(node, torch.autograd.function.BackwardCFunction)
                outputs = node.apply(*inputs) if is_python else node(*inputs)
                outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
                for (before, index), gradient in zip(node.next_functions, outputs, strict=False):
                    if before is not None and gradient is not None:
                        known = gradients[before].get(index)
                        gradients[before][index] = gradient if known is None else known + gradient


def fit(gradient: Tensor, like: Any) -> Tensor:
    """A gradient in the shape and type of what was broadcast, as the engine has it."""
    assert gradient.device == like.device, (gradient.device, like.device)
    return gradient.sum_to_size(like.shape).to(like.dtype)


# --- the code under it ------------------------------------------------------------------------------------------------


class Run:
    """A run's folder that writes nothing."""

    saved_at = float("inf")
    path = last = None

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def append(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def save_last(self, *_: Any) -> None:
        pass


class Images:
    """Data that has a length and classes."""

    categories = tuple(Category(label, f"class {label}") for label in range(CLASSES))

    def __len__(self) -> int:
        return 100


def make_batch(config: Config, images: int = 2, objects: int = 5) -> Batch:
    """As a loader yields it, on the CPU."""
    pixels = torch.empty(images, *SIDES, config.model.in_channels, dtype=torch.uint8).permute(0, 3, 1, 2)
    sizes = torch.empty(images, 2, dtype=torch.int64)
    targets: Any
    if config.task == "classification":
        targets = ClassTargets(torch.empty(images, CLASSES), torch.empty(images, CLASSES))
    elif config.task == "segmentation":
        masks = torch.empty(images, *SIDES, dtype=torch.uint8)
        targets = MaskTargets(masks, torch.empty(images, CLASSES), masks)
    else:
        labels = torch.empty(images, objects, dtype=torch.int64)
        targets = Targets(torch.empty(images, objects, 4), labels, torch.empty(images, 1, 4))
    return Batch(pixels, sizes, sizes, targets, torch.empty(images, dtype=torch.int64))


def take_step(config: Config, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of the training loop on the GPU, with an average."""
    tree = config.model_dump()
    tree["train"] |= {"steps": 1, "batch_size": 2, "accumulate": 1, "compile": False, "ema": 0.9}
    config, task = Config.model_validate(tree), get_task(config)
    monkeypatch.setattr(loop, "train_batches", lambda *_: None)
    monkeypatch.setattr(collate, "load", lambda *_, **__: iter([(make_batch(config), [])]))
    # Which stage a parameter belongs to is probed once, at the start of a run; here that was before.
    monkeypatch.setattr(optimizer, "backbone_rates", lambda model, _: model.rates)
    state = TrainingState.begin(moved(model), config.train, len(Images()), CUDA)
    run = Run()
    assert train(config, task, state, Images(), None, run, CUDA)  # type: ignore[arg-type]
    assert [row["step"] for row in run.rows] == [1]


def predict(config: Config, model: Model) -> None:
    """An evaluation's batch, and what a predictor says of it."""
    task, batch = get_task(config), make_batch(config).to(CUDA)
    found = predict_merged(model.eval(), task, batch, config.model)
    # The sizes of masks are values, which there are none of.
    some = Points(*(torch.zeros(8, dtype=kind, device=CUDA) for kind in (torch.int64, torch.int64, torch.float32)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "points", lambda *_: some)
        _describe(task, found, batch, config)


def _describe(task: Any, found: Any, batch: Batch, config: Config) -> None:
    tally = task.tally(found, batch, config)
    assert tally.rows.size or tally.sums is not None
    assert len(task.to_predictions(found, Images.categories, config.model)) == len(batch.ids)


def build(name: str, *overrides: str) -> tuple[Config, Model]:
    """A config on a small network, unless a name of a network of its own is given; built on the CPU, for real."""
    config = load_config(name, overrides)
    if name not in OWN_NETWORK:
        config = on_resnet10(config)
    head = config.model.head.model_copy(update={"num_convs": 1})  # more would repeat it
    config = config.model_copy(update={"model": config.model.model_copy(update={"head": head})})
    with undrawn():
        model = build_model(config.model, CLASSES)
    model.rates = optimizer.backbone_rates(model, config.train.optimizer)
    return config, model.to(memory_format=torch.channels_last)


@pytest.fixture
def built(request: pytest.FixtureRequest) -> tuple[Config, Model]:
    """What :func:`build` gives for the parameters; a test takes it before ``checks``."""
    return build(*request.param)


def with_model(*cases: tuple[str, ...]) -> Any:
    return pytest.mark.parametrize("built", cases, ids=" ".join, indirect=True)


@with_model(*((name,) for name in NAMES))
def test_every_config(built: tuple[Config, Model], checks: Checks, monkeypatch: pytest.MonkeyPatch) -> None:
    take_step(*built, monkeypatch)
    # The step waits once, for its row of the log; nothing else is read, the average and the buffers included.
    assert checks.waits == {"copy": 1}
    checks.waits.clear()
    predict(*built)
    # Detections are copied once; scores once for the tally, and once for the predictor.
    assert checks.waits == {"copy": 1 if built[0].task == "detection" else 2}


@with_model(
    *(
        (name, f"train.precision={precision}", f"model.predict.precision={precision}", f"train.{key}=true")
        for name, precision, key in (
            (QUICKSTART, "fp16", "tensorboard"),
            (QUICKSTART, "bf16", "activation_checkpointing"),
            (CLASSIFICATION, "bf16", "tensorboard"),
        )
    )
)
def test_every_precision(built: tuple[Config, Model], checks: Checks, monkeypatch: pytest.MonkeyPatch) -> None:
    take_step(*built, monkeypatch)
    predict(*built)


@with_model((QUICKSTART,))
def test_folded_norms(built: tuple[Config, Model], checks: Checks, monkeypatch: pytest.MonkeyPatch) -> None:
    config, model = built
    with monkeypatch.context() as patch:
        patch.setattr(Concrete, "truth", False)  # no output changes by folding
        moved(model).fold_norms()
    assert not any(type(module) in FOLDABLE for module in model.pyramid.modules())
    predict(config, model)


# --- faults that must be found ----------------------------------------------------------------------------------------


def forget_device(patch: pytest.MonkeyPatch, _model: Model) -> None:
    arange = torch.arange
    patch.setattr(torch, "arange", lambda *args, device=None, **kwargs: arange(*args, **kwargs))


def forget_to_register(_patch: pytest.MonkeyPatch, model: Model) -> None:
    vars(model)["mean"] = model._buffers.pop("mean")


def come_back_to_the_cpu(patch: pytest.MonkeyPatch, _model: Model) -> None:
    assign = detection.assign
    patch.setattr(detection, "assign", lambda *args: assign(*args)._replace(target=assign(*args).target.cpu()))


def index_a_cpu_tensor(patch: pytest.MonkeyPatch, _model: Model) -> None:
    select = postprocess.select_candidates
    patch.setattr(postprocess, "select_candidates", lambda predictions, topk: select(predictions, topk))
    patch.setattr(DeltaCoder, "decode", lambda self, channels, anchors: torch.empty(9, 4)[channels.long()[..., 0]])


def forget_the_targets(patch: pytest.MonkeyPatch, _model: Model) -> None:
    to = Batch.to
    patch.setattr(Batch, "to", lambda batch, device: to(batch, device)._replace(targets=batch.targets))


def make_an_array_on_the_gpu(patch: pytest.MonkeyPatch, _model: Model) -> None:
    patch.setattr(FakeTensor, "cpu", lambda tensor: tensor, raising=False)


def average_on_the_cpu(patch: pytest.MonkeyPatch, _model: Model) -> None:
    tensors = average._tensors
    sides = itertools.cycle([lambda tensor: tensor.cpu(), lambda tensor: tensor])

    def mixed(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        side = next(sides)
        return tuple([side(tensor) for tensor in part] for part in tensors(model))  # type: ignore[return-value]

    patch.setattr(average, "_tensors", mixed)
    patch.setattr(AveragedWeights, "updates", 1, raising=False)
    patch.setattr(AveragedWeights, "__init__", lambda self, model, decay: vars(self).update(model=model, decay=decay))


FAULTS = [
    forget_device,
    forget_to_register,
    come_back_to_the_cpu,
    index_a_cpu_tensor,
    forget_the_targets,
    make_an_array_on_the_gpu,
    average_on_the_cpu,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@with_model((QUICKSTART,))
def test_a_fault_is_found(
    fault: Callable[[pytest.MonkeyPatch, Model], None],
    built: tuple[Config, Model],
    checks: Checks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault(monkeypatch, built[1])
    with pytest.raises((RuntimeError, TypeError, AssertionError), match=r"(?i)device|cuda|fake|cpu"):
        take_step(*built, monkeypatch)
        predict(*built)


# --- launches and waiting ---------------------------------------------------------------------------------------------


def counted(checks: Checks, work: Callable[[], Any]) -> tuple[int, dict[str, int]]:
    """Launches and waits of ``work``."""
    checks.launches, checks.waits = 0, Counter()
    work()
    return checks.launches, dict(checks.waits)


def make_predictions(images: int, anchors: int) -> Predictions:
    logits, channels = (torch.empty(images, anchors, width, device=CUDA) for width in (CLASSES, 4))
    return Predictions(logits, channels, torch.empty(anchors, 4, device=CUDA), [anchors])


def test_post_processing_launches_as_much_for_any_number_of_images_and_objects(checks: Checks) -> None:
    config = Config().model

    def work(images: int, anchors: int) -> None:
        batch = make_batch(Config(), images).to(CUDA)
        detections = detection.predict(make_predictions(images, anchors), batch, config)
        detection.tally(detections, batch, config)
        detection.to_predictions(detections, Images.categories, config)
        detection.mirror(detections, batch)

    costs = [counted(checks, lambda size=size: work(*size)) for size in ((1, 900), (8, 900), (8, 9000))]
    assert costs[0] == costs[1] == costs[2]
    assert costs[0][0] < 200
    assert costs[0][1] == {"copy": 1}  # of the detections and whether NMS is done


def test_matching_launches_as_much_for_any_number_of_images_and_objects(checks: Checks) -> None:
    def work(images: int, objects: int) -> None:
        targets = make_batch(Config(), images, objects).to(CUDA).targets
        assign(torch.empty(900, 4, device=CUDA), [900], targets, None, DeltaCoder(), MatcherConfig())

    costs = [counted(checks, lambda size=size: work(*size)) for size in ((1, 16), (8, 16), (8, 32))]
    assert costs[0] == costs[1] == costs[2]
    assert costs[0][0] < 100
    assert costs[0][1] == {}


def test_the_feed_copies_one_batch_ahead(checks: Checks) -> None:
    """Each batch is waited for alone, and held for the stream that reads it; an error comes in its turn."""
    broken = DataError("broken")
    items = [(make_batch(Config()), 0), (make_batch(Config()), 1), (broken, 2)]
    read: list[int] = []
    given = feed((read.append(item[1]) or item for item in items), CUDA)  # type: ignore[func-returns-value]
    tensors = 5  # images, sizes, boxes, labels, regions
    copied = [("event", "copy")]
    log: list[tuple[str, ...]] = []
    for number, more in ((1, 2 * copied), (2, [])):
        batch, note = next(given)
        assert note == number - 1
        assert read == list(range(number + 1))  # one more than is given
        assert {batch.images.device, batch.sizes.device, batch.targets.boxes.device} == {CUDA}
        assert {batch.sizes_original.device, batch.ids.device} == {CPU}  # are for what follows a prediction
        log += [*more, ("wait", "compute", f"copy {number}"), *[("hold", "compute")] * tensors]
        assert Stream.log == log
    assert next(given) == (broken, 2)
    assert next(given, None) is None
    assert Stream.log == log
    assert checks.waits == {}  # the copies do not block


def test_the_feed_of_a_cpu_reads_nothing_ahead() -> None:
    items = iter([(make_batch(Config()), 0), (make_batch(Config()), 1)])
    batch, _ = next(feed(items, CPU))
    assert batch.images.device == CPU
    assert next(items)[1] == 1


@with_model((DETECTION, "model.backbone.norm=frozen_bn"), (DETECTION, "model.backbone.norm=bn"))
def test_the_average_and_the_buffers_launch_a_handful(built: tuple[Config, Model], checks: Checks) -> None:
    model = moved(built[1])
    averaged, saved = AveragedWeights(model, 0.9), SavedBuffers(model)
    has_counts = built[0].model.backbone.norm == "bn"  # of batches, in a type of their own
    for _ in range(3):
        assert counted(checks, lambda: averaged.update(model)) == (1 + has_counts, {})
        assert counted(checks, saved.save) == (1 + has_counts, {})


@with_model((DETECTION,))
def test_a_frozen_norm_is_one_launch(built: tuple[Config, Model], checks: Checks) -> None:
    norm = next(module for module in moved(built[1]).modules() if isinstance(module, FrozenNorm))
    features = torch.empty(1, len(norm.weight), 4, 4, device=CUDA)
    assert counted(checks, lambda: norm(features))[0] == 1
