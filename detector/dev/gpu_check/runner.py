"""What only a GPU can show, in one short visit: is it right, how fast is it, and where does a step's time go.

Each part runs in a process of its own, from a fork server that has imported torch and has not touched the GPU: a part
that fails, hangs or breaks the GPU's context leaves the others alone. To add a part, write a function of :class:`Check`
that returns what the JSON file keeps, or raises, and add it to ``PARTS``.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch.testing import assert_close

from detector.checkpoints.checkpoint import read_checkpoint
from detector.config.loader import load_config
from detector.data.synthetic import write_shapes
from detector.dev.benchmark import infer, loss, measure, peer, postprocess, train
from detector.dev.benchmark.measure import Settings
from detector.dev.stress import TINY, data_overrides, rows_of
from detector.models import Model, build_model
from detector.ops.assignment import max_iou
from detector.processes import child_command, child_environment, end_with_parent
from detector.structures import Batch, Predictions
from detector.tasks import detection
from detector.training.average import AveragedWeights, SavedBuffers
from detector.training.fitting import fit
from detector.training.run_folder import RunFolder

SMALL_CONFIG, CONFIG = "retinanet_r18_fpn.yaml", "retinanet_r50_fpn.yaml"
FAST_CONFIG, CLASSES = "retinanet_x50_32x4d_fpn_800.yaml", 264
SIDE, BATCH = 800, 32
KERNELS = 15  # of the profile
PART_SECONDS = 150  # before a part counts as hanging

_servers = multiprocessing.get_context("forkserver")


class Check(NamedTuple):
    """What a part is given."""

    device: str
    scale: float = 1.0

    @property
    def settings(self) -> Settings:
        return Settings(device=self.device, scale=self.scale)

    @property
    def is_cuda(self) -> bool:
        return torch.device(self.device).type == "cuda"

    @property
    def fast_precision(self) -> str:
        return "bf16" if self.is_cuda else "fp32"


class Outcome(NamedTuple):
    """Of one part, as the JSON file has it."""

    part: str
    status: str  # passed, failed, skipped
    seconds: float
    detail: str  # why it failed or was skipped
    found: Any = None


class SkippedError(Exception):
    """A part that cannot run here."""


# --- correctness ------------------------------------------------------------------------------------------------------


def small_model(device: str) -> Model:
    torch.manual_seed(0)
    return build_model(load_config("quickstart.yaml").model, 4).to(device, memory_format=torch.channels_last)


def sixteen_bits(check: Check) -> dict[str, float]:
    """A uint16 batch: the same logits as on a CPU."""
    images = torch.randint(0, 65536, (2, 3, 128, 160), dtype=torch.int32).to(torch.uint16)
    sizes = torch.tensor([[128, 160], [100, 130]])
    outputs = []
    with torch.inference_mode():
        for device in ("cpu", check.device):
            model = small_model(device).eval()
            outputs.append(model(images.to(device), sizes.to(device)).cls_logits.cpu())
    assert_close(outputs[1], outputs[0], rtol=5e-3, atol=5e-3)  # TF32 convolutions
    return {"largest difference": float((outputs[1] - outputs[0]).abs().max())}


def losses_and_gradients(check: Check) -> dict[str, list[float]]:
    """Matching to the bit, losses and gradients to 1e-4, CPU against the device."""
    side, objects = check.settings.side(SIDE), check.settings.scaled(100)
    inputs = [loss.make_inputs(side, side, 2, objects, device) for device in ("cpu", check.device)]
    targets = [
        max_iou(*each.predictions[2:], each.targets, None, loss.DeltaCoder(), loss.CONFIG.matcher).target.cpu()
        for each in inputs
    ]
    assert torch.equal(*targets), f"{int((targets[0] != targets[1]).sum())} anchors are matched otherwise"
    own, other = (loss.ours(each)() for each in inputs)
    for one, two in zip([*other.losses, *other.gradients], [*own.losses, *own.gradients], strict=True):
        assert_close(one.cpu(), two, rtol=1e-4, atol=1e-4 * float(two.abs().max()))
    return {"losses": [float(part) for part in other.losses]}


def ties(check: Check) -> dict[str, int]:
    """Post-processing of logits in steps of a quarter, so that many scores tie: the same detections as on a CPU."""
    side = check.settings.side(SIDE)
    found = []
    for device in ("cpu", check.device):
        inputs = postprocess.make_inputs(side, side, -4.6, 0.88, "cpu")
        logits = (inputs.predictions.cls_logits * 4).round() / 4
        raw = inputs.predictions._replace(cls_logits=logits)
        moved = Predictions(*(part.to(device) for part in raw[:3]), raw.level_counts)
        batch = inputs.batch.to(torch.device(device))
        with torch.inference_mode():
            found.append(
                [
                    tuple(part.cpu() for part in each)
                    for each in postprocess.to_list(detection.predict(moved, batch, postprocess.CONFIG))
                ]
            )
    assert all(torch.allclose(one[1], two[1], atol=1e-6) for one, two in zip(*found, strict=True)), "scores differ"
    return {"detections": sum(len(each[1]) for each in found[1])}


def step_config(check: Check, *overrides: str, name: str = SMALL_CONFIG) -> Any:
    side, batch = check.settings.side(SIDE // 2), check.settings.scaled(8, least=2)
    size = f"data.resize={{short: [{side}], long: {side}}}"
    return peer.comparable(name, (size, f"train.batch_size={batch}", *overrides))


def precisions(check: Check) -> dict[str, float]:
    """A step in each precision: its loss is that of a CPU in fp32, within the benchmark's tolerances."""
    inputs = train.make_inputs(step_config(check), 80, torch.device("cpu"))
    expected = train.ours(inputs)().loss
    device, found = torch.device(check.device), {}
    for precision, tolerance in train.TOLERANCES.items():
        if precision == "fp16" and not check.is_cuda:
            continue  # takes minutes on a CPU
        own = train.Inputs(step_config(check, f"train.precision={precision}"), inputs.weights, inputs.batch.to(device))
        run = train.ours(own)
        found[precision] = float(run().loss)
        assert abs(found[precision] - expected) <= max(tolerance, 5e-3) * expected, (precision, found, float(expected))
        assert run().loss.isfinite(), f"{precision}: the second step's loss is not finite"
    return found


def waiting(check: Check) -> str:
    """A step, the average and the saved buffers never wait for the GPU."""
    device = torch.device(check.device)
    inputs = train.make_inputs(step_config(check, f"train.precision={check.fast_precision}"), 80, device)
    run, model = train.ours(inputs), small_model(check.device)
    averaged, saved = AveragedWeights(model, 0.9), SavedBuffers(model)
    run()  # the first step makes handles, workspaces and the optimizer's state
    with refuse_to_wait(check):
        run()
        for _ in range(2):
            averaged.update(model)
            saved.save()
        saved.restore()
    return "no wait" if check.is_cuda else "nothing waits on a CPU"


@contextlib.contextmanager
def refuse_to_wait(check: Check) -> Iterator[None]:
    if not check.is_cuda:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def compiled(check: Check) -> dict[str, float]:
    """The compiled network at three shapes: the logits of the eager one."""
    if not check.is_cuda:
        raise SkippedError("the tests compile on a CPU")
    model = small_model(check.device).eval()
    network, gaps = torch.compile(model), {}
    with torch.inference_mode():
        for height, width in ((128, 160), (160, 128), (192, 192)):
            images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, device=check.device)
            sizes = torch.tensor([[height, width]] * 2, device=check.device)
            own, expected = network(images, sizes).cls_logits, model(images, sizes).cls_logits
            assert_close(own, expected, rtol=5e-3, atol=5e-3)
            gaps[f"{height}×{width}"] = float((own - expected).abs().max())
    return gaps


def resuming(check: Check) -> dict[str, int]:
    """Four steps, and two and two: the same bits of weights, average and log, with ``train.deterministic``."""
    with tempfile.TemporaryDirectory(prefix="detector_gpu_check_") as name:
        folder = Path(name)
        write_shapes(folder / "data", train=8, val=2)
        given = [*TINY, *data_overrides(folder / "data"), "data.workers=0", "train.batch_size=2", "data.val=null"]
        given += ["train.deterministic=true", "train.schedule={name: multistep, warmup_steps: 0, milestones: [1.0]}"]
        for run, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
            config = load_config("quickstart.yaml", [*given, f"train.steps={steps}"])
            with contextlib.redirect_stderr(io.StringIO()):
                assert fit(config, RunFolder(folder / run), torch.device(check.device), resume=run == "parts")
        rows = [[row | {"images_per_second": 0} for row in rows_of(folder / run)] for run in ("whole", "parts")]
        assert rows[0] == rows[1], "the losses differ"
        one, two = (read_checkpoint(folder / run / "last.pt") for run in ("whole", "parts"))
        for part in ("model", "ema"):
            differing = [key for key, tensor in one[part].items() if not torch.equal(tensor, two[part][key])]
            assert not differing, f"{part}: {len(differing)} tensors differ, such as {differing[0]}"
        return {"tensors": len(one["model"]) + len(one["ema"])}


def two_cards(check: Check) -> dict[str, list[float]]:
    """Two processes over NCCL: the losses of one process."""
    if not check.is_cuda or torch.cuda.device_count() < 2:
        raise SkippedError("there are no two cards")
    with tempfile.TemporaryDirectory(prefix="detector_gpu_check_") as name:
        folder = Path(name)
        write_shapes(folder / "data", train=8, val=2)
        given = ["--config", "quickstart.yaml", "--runs", name, *data_overrides(folder / "data"), "data.workers=0"]
        given += ["model.backbone.norm=sync_bn", "train.batch_size=4", "train.steps=4", "data.val=null"]
        ranks = ["torch.distributed.run", "--nproc-per-node", "2", "--module", "detector", "train", "--name", "two"]
        for module, *arguments in (["detector", "train", "--name", "one"], ranks):
            command = child_command(module, *arguments, *given)
            done = subprocess.run(command, env=child_environment(), capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-2000:]
        losses = [[row["loss"] for row in rows_of(folder / run)] for run in ("one", "two")]
        assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-2, atol=1e-3)
        return {"losses": losses[1]}


# --- times ------------------------------------------------------------------------------------------------------------


def timed(case: measure.Case, check: Check) -> dict[str, Any]:
    """A benchmark's row, without its memory in processes of their own; the allocator's peak is of both sides."""
    if check.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory(prefix="detector_gpu_check_") as name:
        if case.files:
            case.files(Path(name))
        timing = measure.measure_time(replace(case, runs=min(case.runs, 10)), check.settings, Path(name))
    row: dict[str, Any] = {"case": case.name, "equal": timing.outputs_equal}
    for side, seconds in (("ours", timing.ours), ("theirs", timing.theirs)):
        if seconds:
            row[f"{side}_ms"] = 1000 * median(seconds)
            row[f"{side}_images_per_second"] = measure.divide(case.images, median(seconds))
    if check.is_cuda:
        row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return row


def train_fast(check: Check) -> list[dict[str, Any]]:
    """A step of ResNeXt-50 at 800², batch 32, bf16, compiled, 264 classes, beside torchvision's."""
    side, batch = check.settings.side(SIDE), check.settings.scaled(BATCH, least=2)
    overrides = (f"data.resize.fixed=[{side}, {side}]", f"train.batch_size={batch}")
    overrides += (f"train.precision={check.fast_precision}", f"train.compile={str(check.is_cuda).lower()}")
    settings = replace(check.settings, config=FAST_CONFIG, classes=CLASSES, overrides=overrides)
    return [timed(case, check) for case in train.cases(settings)]


def train_plain(check: Check) -> list[dict[str, Any]]:
    """A step of ResNet-50 at 800², batch 16, bf16."""
    side, batch = check.settings.side(SIDE), check.settings.scaled(BATCH // 2, least=2)
    overrides = (f"data.resize={{short: [{side}], long: {side}}}", f"train.batch_size={batch}")
    overrides += (f"train.precision={check.fast_precision}",)
    return [timed(case, check) for case in train.cases(replace(check.settings, config=CONFIG, overrides=overrides))]


def inference(check: Check) -> list[dict[str, Any]]:
    """ResNet-50 at 800² in bf16, batch 32 and 1, post-processing included: launched, and as a CUDA graph."""
    cases = infer.gpu_cases(check.settings)
    if not check.is_cuda:
        cases = cases[1:]  # a batch of 32 takes minutes
    rows = [timed(case, check) for case in cases]
    if check.is_cuda:
        graphs = [
            replace(case, name=f"{case.name}, CUDA graph", ours=graphed, theirs=None, equal=None) for case in cases
        ]
        rows += [timed(case, check) for case in graphs]
    return rows


def graphed(inputs: infer.Pixels) -> measure.Run:
    """As ``infer.ours_from_pixels``, with the folded network's launches recorded once and replayed."""
    device, count = inputs.images.device, len(inputs.images)
    model = build_model(inputs.config.model, len(inputs.weights["categories"]))
    model.load_state_dict(inputs.weights["model"])
    model = model.fold_norms().to(device, memory_format=torch.channels_last)
    sizes = torch.tensor([inputs.images.shape[-2:]] * count, device=device)
    batch = Batch(inputs.images, sizes, sizes, None, torch.arange(count, device=device))
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # warms up what a recording may not do
            for _ in range(3):
                model(batch.images, batch.sizes)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            output = model(batch.images, batch.sizes)

    @torch.inference_mode()
    def run() -> list[peer.Found]:
        graph.replay()
        return postprocess.to_list(detection.predict(output, batch, inputs.config.model))

    return run


def post_processing(check: Check) -> list[dict[str, Any]]:
    """Logits and deltas to detections, beside torchvision's."""
    return [timed(case, check) for case in postprocess.cases(check.settings)]


def loss_alone(check: Check) -> list[dict[str, Any]]:
    """Matching and losses with their gradients, beside torchvision's."""
    return [timed(case, check) for case in loss.cases(check.settings)[:2]]


def profile(check: Check) -> list[dict[str, Any]]:
    """The kernels that a training step spends most time in."""
    config = step_config(check, f"train.precision={check.fast_precision}", name=CONFIG)
    run = train.ours(train.make_inputs(config, 80, torch.device(check.device)))
    run()
    kinds = [torch.profiler.ProfilerActivity.CPU, *[torch.profiler.ProfilerActivity.CUDA] * check.is_cuda]
    with torch.profiler.profile(activities=kinds) as profiler:
        run()
        measure.finish(check.device)
    events = profiler.key_averages()
    attribute = "self_device_time_total" if check.is_cuda else "self_cpu_time_total"
    most = sorted(events, key=lambda event: -getattr(event, attribute))[:KERNELS]
    return [{"kernel": event.key[:80], "ms": getattr(event, attribute) / 1000, "calls": event.count} for event in most]


Part = Callable[[Check], Any]

PARTS: dict[str, Part] = {
    "uint16": sixteen_bits,
    "loss": losses_and_gradients,
    "ties": ties,
    "precisions": precisions,
    "waiting": waiting,
    "compile": compiled,
    "resume": resuming,
    "nccl": two_cards,
    "train x50": train_fast,
    "train r50": train_plain,
    "infer r50": inference,
    "postprocess": post_processing,
    "loss times": loss_alone,
    "profile": profile,
}


# --- running them -----------------------------------------------------------------------------------------------------


def run_parts(check: Check, names: list[str], minutes: float) -> Iterator[Outcome]:
    """The outcome of each part, in order; parts that no time is left for are skipped."""
    _servers.set_forkserver_preload([__name__])
    end = time.monotonic() + 60 * minutes
    for name in names:
        left = end - time.monotonic()
        yield (
            run_apart(check, name, min(PART_SECONDS, left)) if left > 5 else Outcome(name, "skipped", 0, "out of time")
        )


def run_apart(check: Check, name: str, seconds: float) -> Outcome:
    """The outcome of a part in a process of its own."""
    started = time.monotonic()
    receiver, sender = _servers.Pipe(duplex=False)
    process = _servers.Process(target=_serve, args=(check, PARTS[name], sender))
    process.start()
    sender.close()
    status, detail, found = "failed", f"hangs: not done in {seconds:.0f} s", None
    if receiver.poll(seconds):
        try:
            status, detail, found = receiver.recv()
        except EOFError:
            process.join()
            detail = f"its process ended with {process.exitcode}"
    process.kill()
    process.join()
    return Outcome(name, status, round(time.monotonic() - started, 1), detail, found)


def _serve(check: Check, part: Part, sender: Connection) -> None:
    end_with_parent()
    sender.send(try_part(check, part))


def try_part(check: Check, part: Part) -> tuple[str, str, Any]:
    """Status, detail and what was found of a part in this process."""
    torch.set_flush_denormal(True)
    try:
        return "passed", "", part(check)
    except SkippedError as reason:
        return "skipped", str(reason), None
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split())[:300]
        return "failed", f"{type(error).__name__}: {text} ({Path(place.filename).name}:{place.lineno})", None
