"""How fast it is on a GPU: the benchmark's rows beside torchvision's, memory formats, and a profile of a step."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from detector.dev.benchmark import infer, loss, measure, peer, postprocess, train
from detector.dev.gpu_check.check import BATCH, CONFIG, SIDE, Check, step_config
from detector.models import build_model
from detector.structures import Batch
from detector.tasks import detection

GROUP_NORM_CONFIG = "retinanet_r50_fpn_v2.yaml"
FAST_CONFIG, CLASSES = "retinanet_x50_32x4d_fpn_800.yaml", 264
KERNELS = 15  # of the profile


def timed(case: measure.Case, check: Check) -> dict[str, Any]:
    """A benchmark's row, without its memory in processes of their own; the allocator's peak is of both sides."""
    if check.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory(prefix="detector_gpu_check_") as name:
        if case.files:
            case.files(Path(name))
        timing = measure.measure_time(
            replace(case, runs=min(case.runs, check.settings.scaled(10))), check.settings, Path(name)
        )
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


def memory_formats(check: Check) -> list[dict[str, Any]]:
    """A step in both memory formats, without group norms and with them, to decide the rule of ``Model.place``."""
    precisions = dict.fromkeys(("fp32", check.fast_precision))
    return [in_both_formats(check, name, each) for name in (CONFIG, GROUP_NORM_CONFIG) for each in precisions]


def in_both_formats(check: Check, name: str, precision: str) -> dict[str, Any]:
    config = step_config(check, f"train.precision={precision}", name=name)
    last, first = (partial(train.ours, is_channels_first=is_first) for is_first in (False, True))
    inputs = partial(train.make_inputs, config, 80, torch.device(check.device))
    row = timed(measure.Case(f"{name}, {precision}", lambda _: inputs(), last, first, train.equal), check)
    return {
        "case": row["case"],
        "equal": row["equal"],
        "channels_last_ms": row["ours_ms"],
        "channels_first_ms": row["theirs_ms"],
    }


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
    model = model.fold_norms().place(device, "bf16")
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
