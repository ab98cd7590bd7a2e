"""Smaller numbers in an ONNX file: INT8 by calibration on images, and FP16."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from detector.errors import ConfigError

if TYPE_CHECKING:
    import onnx

Feed = dict[str, np.ndarray]

LEAST_IMAGES = 20  # for calibration: with fewer, a range of activations is a matter of luck
LAYERS = ("Conv", "Gemm", "MatMul")


def to_int8(model: onnx.ModelProto, feeds: Iterable[Feed]) -> onnx.ModelProto:
    """Convolutions in INT8: weights per channel, activations by their range on ``feeds`` (the inputs, batch by batch).

    Convolutions that make the network's outputs stay in float: their errors would become those of scores and boxes.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory(prefix="detector-export-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole, prepared, reduced = (str(Path(folder) / name) for name in ("whole", "prepared", "reduced"))
        onnx.save(model, whole)
        quant_pre_process(whole, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            reduced,
            _Feeds(iter(feeds)),  # type: ignore[arg-type]
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=last_convolutions(onnx.load(prepared)),
            calibrate_method=CalibrationMethod.MinMax,
        )
        return onnx.load(reduced)


class _Feeds:
    """What the calibration takes instead of an iterator."""

    def __init__(self, feeds: Iterator[Feed]) -> None:
        self.feeds = feeds

    def get_next(self) -> Feed | None:
        return next(self.feeds, None)


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network in FP16; its inputs, what stands before and after it, and the outputs keep their types."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    inside = network_nodes(model)
    outside = [node.name for node in model.graph.node if node.name not in inside]
    with warnings.catch_warnings():  # of weights that FP16 rounds to 0
        warnings.simplefilter("ignore")
        return convert_float_to_float16(model, keep_io_types=True, node_block_list=outside, disable_shape_infer=False)


def last_convolutions(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions after which there is no other layer."""
    before, _ = _around_layers(model)
    return [node.name for node in model.graph.node if node.op_type == "Conv" and node.name not in before]


def network_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the layers and of all nodes between them."""
    before, behind = _around_layers(model)
    return {node.name for node in model.graph.node if node.op_type in LAYERS} | (before & behind)


def _around_layers(model: onnx.ModelProto) -> tuple[set[str], set[str]]:
    """Names of the nodes before some layer, and of those behind one; the graph is in topological order."""
    return _flooded(reversed(model.graph.node), "output", "input"), _flooded(model.graph.node, "input", "output")


def _flooded(nodes: Iterable[onnx.NodeProto], near: str, far: str) -> set[str]:
    """Names of the nodes that a layer's values reach, from their ``near`` side on."""
    names, values = set(), set()
    for node in nodes:
        if values & set(getattr(node, near)):
            names.add(node.name)
        if node.op_type in LAYERS or node.name in names:
            values |= set(getattr(node, far))
    return names


def check_count(count: int) -> None:
    if count < LEAST_IMAGES:
        raise ConfigError(
            f"command line: --images: INT8 needs at least {LEAST_IMAGES} images like those to predict, to measure the"
            f" ranges of activations; there are {count}"
        )
