"""How fast it is on a GPU: the benchmark's rows beside torchvision's, memory formats, and a profile of a step."""

from __future__ import annotations

import contextlib
import io
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from detector.config.loader import load_config
from detector.dev.benchmark import infer, loss, measure, peer, postprocess, train
from detector.dev.benchmark.generate import IMAGES, TRAIN, write_photos
from detector.dev.gpu_check.check import BATCH, CONFIG, SIDE, Check
from detector.dev.stress import rows_of
from detector.training.fitting import fit
from detector.training.run_folder import RunFolder

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


def fast_overrides(check: Check) -> tuple[str, ...]:
    """800², batch 32, bf16, compiled; on a CPU neither of the last two."""
    side, batch = check.side(SIDE), check.settings.scaled(BATCH, least=2)
    size = (f"data.resize.fixed=[{side}, {side}]", f"train.batch_size={batch}")
    return (*size, f"train.precision={check.fast_precision}", f"train.compile={str(check.is_cuda).lower()}")


def train_fast(check: Check) -> list[dict[str, Any]]:
    """A step of ResNeXt-50 at 800², batch 32, bf16, compiled, 264 classes, beside torchvision's."""
    settings = replace(check.settings, config=FAST_CONFIG, classes=CLASSES, overrides=fast_overrides(check))
    return [timed(case, check) for case in train.cases(settings)]


def train_plain(check: Check) -> list[dict[str, Any]]:
    """A step of ResNet-50 at 800², batch 16, bf16."""
    side, batch = check.side(SIDE), check.settings.scaled(BATCH // 2, least=2)
    overrides = (f"data.resize={{short: [{side}], long: {side}}}", f"train.batch_size={batch}")
    overrides += (f"train.precision={check.fast_precision}",)
    return [timed(case, check) for case in train.cases(replace(check.settings, config=CONFIG, overrides=overrides))]


def whole_run(check: Check) -> list[dict[str, Any]]:
    """A run of ``train`` on photos of COCO's size, resized to 800², fed by a loader per core; all layers train."""
    side, batch = check.side(SIDE), check.settings.scaled(BATCH // 2, least=2)
    with tempfile.TemporaryDirectory(prefix="detector_gpu_check_") as name:
        folder = Path(name)
        write_photos(folder, 2 * batch)
        given = [f"data.train={{annotations: {folder / TRAIN}, images: {folder / IMAGES}}}", "data.val=null"]
        given += [f"data.resize.fixed=[{side}, {side}]", f"data.workers={measure.num_cores()}"]
        given += [f"train.batch_size={batch}", f"train.precision={check.fast_precision}"]
        given += [f"train.steps={check.settings.scaled(32, least=4)}"]
        given += ["model.backbone={norm: bn, freeze_at: 0, weights: null}"]
        with contextlib.redirect_stderr(io.StringIO()):
            assert fit(load_config(CONFIG, given), RunFolder(folder / "run"), torch.device(check.device))
        rates = [row["images_per_second"] for row in rows_of(folder / "run")]
    return [{"case": f"{side}×{side}, batch {batch}", "images_per_second": median(rates[len(rates) // 2 :])}]


def inference(check: Check) -> list[dict[str, Any]]:
    """ResNet-50 at 800² in bf16, batch 32 and 1, post-processing included: as it is, and compiled."""
    cases = infer.gpu_cases(check.settings)
    if not check.is_cuda:
        cases = [case for case in cases if case.images == 1 and "compiled" not in case.name]  # others take minutes
    return [timed(case, check) for case in cases]


def post_processing(check: Check) -> list[dict[str, Any]]:
    """Logits and deltas to detections, beside torchvision's."""
    return [timed(case, check) for case in postprocess.cases(check.settings)]


def loss_alone(check: Check) -> list[dict[str, Any]]:
    """Matching and losses with their gradients, beside torchvision's."""
    return [timed(case, check) for case in loss.cases(check.settings)[:2]]


def profile(check: Check) -> list[dict[str, Any]]:
    """The kernels that the step of ``train_fast`` spends most time in, and the time of all."""
    config = peer.comparable(FAST_CONFIG, fast_overrides(check))
    run = train.ours(train.make_inputs(config, CLASSES, torch.device(check.device)))
    for _ in range(3):  # compiles, searches for algorithms, and makes the optimizer's state
        run()
    kinds = [torch.profiler.ProfilerActivity.CPU, *[torch.profiler.ProfilerActivity.CUDA] * check.is_cuda]
    with torch.profiler.profile(activities=kinds) as profiler:
        run()
        measure.finish(check.device)
    events = profiler.key_averages()
    attribute = "self_device_time_total" if check.is_cuda else "self_cpu_time_total"
    most = sorted(events, key=lambda event: -getattr(event, attribute))[:KERNELS]
    total = {"kernel": "all", "ms": sum(getattr(event, attribute) for event in events) / 1000, "calls": None}
    rows = [{"kernel": event.key[:80], "ms": getattr(event, attribute) / 1000, "calls": event.count} for event in most]
    return [total, *rows]
