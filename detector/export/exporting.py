"""Export a checkpoint to a file, and check the file against the checkpoint before it gets its name."""

from __future__ import annotations

import copy
import io
import json
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from detector.checkpoints.opening import Opened
from detector.config.schema import Config
from detector.data.images import read_image
from detector.data.inputs import ImageInput
from detector.data.loading.collate import collate
from detector.data.transforms.resize import by_shape
from detector.errors import ConfigError, DetectorError, counted
from detector.export import onnx as onnx_files
from detector.export import reduced
from detector.export.graph import Prediction, export_graph
from detector.inference.evaluate import evaluate_opened
from detector.inference.exported import ExportedPredictor
from detector.inference.predictor import Predictor
from detector.system.atomic import atomic_write
from detector.tasks import get_results, get_task

# The most that scores and boxes (in pixels) may differ by. Kinds in float must find what the checkpoint finds.
EXACT = {"onnx": (1e-4, 1e-2), "pt2": (1e-4, 1e-2)}
REDUCED = {"int8": (0.1, 8.0), "fp16": (5e-3, 0.5)}  # only reported
COMPARED = 8  # images, at most
GENERATED = ((96, 160), (150, 90), (96, 160))  # heights and widths of the images that are compared where none are given


class ExportError(DetectorError):
    """The exported file does not do what the checkpoint does; it was removed."""

    exit_code = 1


class Exported(NamedTuple):
    """What was written and what was checked."""

    path: Path
    bytes: int
    lines: list[str]


class Request(NamedTuple):
    """What to export."""

    kind: str  # of EXACT or REDUCED
    images: Sequence[Path] = ()  # to compare predictions on, and of INT8 to calibrate with
    is_deep: bool = False  # images are uint16
    is_fixed: bool = False  # thresholds are constants
    is_scored: bool = False  # also score both on the config's val data
    max_drop: float | None = None  # of the main metric


def export(opened: Opened, source: str, output: Path, request: Request) -> Exported:
    """Write ``output``. Raises :class:`ExportError`, and leaves no file, where it differs from the checkpoint."""
    if request.kind == "int8":
        reduced.check_count(len(request.images))
    if opened.config.model.predict.flip or list(opened.config.model.predict.scales) != [1.0]:
        raise ConfigError(
            f"{source}: model.predict.flip and scales merge several predictions; an exported file makes one: add"
            " model.predict.flip=false model.predict.scales=[1.0]"
        )
    config = _in_float(opened.config)
    predictor = Predictor(opened.model.fold_norms(), config, opened.categories, torch.device("cpu"))
    program = export_graph(predictor.model, config, request.is_deep, request.is_fixed)
    with atomic_write(output, "wb") as file:
        if request.kind == "pt2":
            described = {"config": config.model_dump(mode="json"), "classes": opened.categories}
            buffer = io.BytesIO()
            torch.export.save(program, buffer, extra_files={"detector.json": json.dumps(described)})
            file.write(buffer.getvalue())
            buffer.seek(0)
            found = _compare_program(predictor, torch.export.load(buffer).module(), request)
        else:
            file.write(_onnx_bytes(program, predictor, request))
            file.flush()
            exported = ExportedPredictor(file.name)
            found = _compare_onnx(predictor, exported, request)
            if request.is_scored:
                found += _score(predictor, exported, source, request)
    return Exported(output, output.stat().st_size, found)


def _in_float(config: Config) -> Config:
    """The config in float32: what a network computes in elsewhere is not for an exported graph to say."""
    predict = config.model.predict.model_copy(update={"precision": "fp32"})
    return config.model_copy(update={"model": config.model.model_copy(update={"predict": predict})})


def _onnx_bytes(program: ExportedProgram, predictor: Predictor, request: Request) -> bytes:
    config, categories = predictor.config, predictor.categories
    model = onnx_files.to_onnx(program, config)
    if request.kind == "fp16":
        model = reduced.to_fp16(model)
    if request.kind == "int8":
        with NamedTemporaryFile(suffix=".onnx") as file:  # its predictor makes the inputs to calibrate with
            onnx_files.describe(whole := copy.deepcopy(model), config, categories, request.is_fixed, "onnx")
            file.write(whole.SerializeToString())
            file.flush()
            feeder = ExportedPredictor(file.name)
        images = (read_image(path, *predictor.reading) for path in request.images)
        model = reduced.to_int8(model, (feeder.feed(*feeder.batch([feeder.sample(image)])) for image in images))
    onnx_files.describe(model, config, categories, request.is_fixed, request.kind)
    onnx_files.check(model, get_results(config.task))
    return model.SerializeToString()


# --- the same as the checkpoint ---------------------------------------------------------------------------------------


def _images(predictor: Predictor, request: Request) -> list[np.ndarray]:
    """What predictions are compared on: the given images, or noise in two sizes."""
    if request.images:
        step = -(-len(request.images) // COMPARED)
        return [read_image(path, *predictor.reading) for path in request.images[::step]]
    noise, channels = np.random.default_rng(0), predictor.config.model.in_channels
    return [noise.integers(0, 256, (*sides, channels), dtype=np.uint8) for sides in GENERATED]


def _compare_onnx(predictor: Predictor, exported: ExportedPredictor, request: Request) -> list[str]:
    """What the file's predictions differ by, one by one and in batches; an exact kind must agree."""
    images, results = _images(predictor, request), get_results(predictor.config.task)
    expected = predictor.predict(images, batch_size=1)
    everything = candidates(predictor, images)
    where = counted(len(images), "image") + ("" if request.images else " of noise")
    limits, lines = (EXACT | REDUCED)[request.kind], []
    for batch_size, words in ((1, "one by one"), (3, "in batches")):
        found = exported.predict(images, batch_size=batch_size)
        difference = results.compare(expected, found, *limits, predictor.config.model.predict, everything)
        lines.append(f"{where}, {words}: {difference.text}")
        if request.kind in EXACT and not difference.is_same:
            raise ExportError(f"the exported model does not predict what the checkpoint does: {lines[-1]}")
    if not difference.compared:
        print(
            f"warning: no detections were compared, as the checkpoint finds nothing on {where};"
            f" give {'other ' if request.images else ''}--images with objects, or lower model.predict.score_threshold",
            file=sys.stderr,
        )
    return lines


def candidates(predictor: Predictor, images: Sequence[ImageInput]) -> Callable[[int], Any]:
    """An image's index → all that the model finds in it: without NMS, thresholds and a limit."""
    config = predictor.config
    every = {"nms_threshold": 1.0, "score_threshold": 0.0, "score_thresholds": None, "max_detections": sys.maxsize}
    predict = config.model.predict.model_copy(update=every)
    config = config.model_copy(update={"model": config.model.model_copy(update={"predict": predict})})
    keeping = Predictor(predictor.model, config, predictor.categories, predictor.device)
    return cache(lambda index: keeping.predict([images[index]])[0])


def _compare_program(predictor: Predictor, module: nn.Module, request: Request) -> list[str]:
    """As :func:`_compare_onnx`, of torch's own format: the tensors must be the same."""
    images, own = _images(predictor, request), Prediction(predictor.model, predictor.config)
    samples = [predictor.sample(image) for image in images]
    settings = own.settings(request.is_fixed)
    for indices in by_shape(samples):
        batch = collate([samples[index] for index in indices])
        with torch.inference_mode():
            given = batch.images, batch.sizes, batch.sizes_original
            for one, other in zip(own(*given, **settings), module(*given, **settings), strict=True):
                if one.shape != other.shape or not torch.allclose(one, other, rtol=0, atol=EXACT["pt2"][1]):
                    raise ExportError("the exported program does not compute what the checkpoint does")
    return [f"{counted(len(images), 'image')}: the same tensors, to {EXACT['pt2'][1]}"]


def _score(predictor: Predictor, exported: ExportedPredictor, source: str, request: Request) -> list[str]:
    """The main metric of both on the val data of the config."""
    config, categories = predictor.config, predictor.categories
    metric = get_task(config).main_metric(config)
    own, other = (
        evaluate_opened(Opened(model, config, categories), f"{source} ({kind})", config).scored.metrics[metric]
        for model, kind in ((predictor.model, "checkpoint"), (exported, request.kind))
    )
    line = f"{metric} {own:.4f} of the checkpoint, {other:.4f} of the exported model: {other - own:+.4f}"
    if request.max_drop is not None and not own - other <= request.max_drop:
        raise ExportError(f"{line}, more than --max-ap-drop {request.max_drop:g} allows; nothing was written")
    return [line]
