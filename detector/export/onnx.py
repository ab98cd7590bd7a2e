"""ONNX: an exported graph as a file that describes itself.

``metadata_props`` hold what a program needs to make the inputs and to read the outputs; values that are not text are
JSON. :mod:`detector.inference.exported` reads them.
"""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram

import detector
from detector.config.loader import config_to_dict
from detector.config.schema import Config
from detector.structures import Category
from detector.tasks import Results, get_results

if TYPE_CHECKING:
    import onnx

FORMAT = 1  # of the metadata
OPSET = 18
IMAGES = ("batch", "channels", "height", "width")
DYNAMIC = ("batch", "height", "width", "detections")


def to_onnx(program: ExportedProgram, config: Config) -> onnx.ModelProto:
    """The graph in ONNX, with named inputs, outputs and dynamic dimensions."""
    results = get_results(config.task)
    settings = [name for name in results.INPUTS if len(program.graph_signature.user_inputs) > 3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images", "sizes", "sizes_original", *settings],
            output_names=list(results.OUTPUTS),
            custom_translation_table={
                torch.ops.detector.class_nms.default: _class_nms,
                torch.ops.aten.sort.stable: _sort,
            },
            verbose=False,
        )
    model = converted.model_proto
    _name_dimensions(model, results.OUTPUTS)
    return model


def _class_nms(boxes: Any, scores: Any, labels: Any, threshold: Any) -> Any:
    """:func:`detector.ops.postprocess.class_nms` by ONNX's operator, which is class-wise."""
    from onnxscript import opset18 as op

    zero, one = op.Constant(value_float=0.0), op.Constant(value_float=1.0)
    classes = op.Add(op.ReduceMax(labels, keepdims=0), op.Constant(value_int=1))  # those that occur
    is_own = op.OneHot(labels, classes, op.Constant(value_floats=[0.0, 1.0]), axis=1)  # [B, K, M]
    by_class = op.Mul(op.Unsqueeze(scores, op.Constant(value_ints=[1])), is_own)
    count = op.Shape(scores, start=1, end=2)
    threshold = op.Reshape(op.Cast(threshold, to=1), op.Constant(value_ints=[1]))
    selected = op.NonMaxSuppression(boxes, by_class, count, threshold, op.Constant(value_floats=[0.0]))  # [n, 3]
    image_and_candidate = op.Gather(selected, op.Constant(value_ints=[0, 2]), axis=1)
    kept = op.Expand(one, op.Shape(image_and_candidate, start=0, end=1))
    return op.Cast(op.ScatterND(op.Expand(zero, op.Shape(scores)), image_and_candidate, kept), to=9)  # bool


def _sort(values: Any, stable: bool, dim: int, descending: bool) -> Any:
    """A stable sort: of equal values, ``TopK`` takes the lower index first."""
    from onnxscript import opset18 as op

    return op.TopK(values, op.Shape(values, start=dim, end=dim + 1), axis=dim, largest=int(descending), sorted=1)


def _name_dimensions(model: onnx.ModelProto, outputs: dict[str, tuple[str, ...]]) -> None:
    """Readable names of the dynamic dimensions, which ``torch.export`` writes as formulas."""
    names = {"images": IMAGES, "sizes": ("batch", "2"), "sizes_original": ("batch", "2"), **outputs}
    for value in (*model.graph.input, *model.graph.output):
        for dimension, name in zip(value.type.tensor_type.shape.dim, names.get(value.name, ()), strict=False):
            if dimension.dim_param:
                dimension.dim_param = name


def describe(model: onnx.ModelProto, config: Config, categories: list[Category], is_fixed: bool, kind: str) -> None:
    """Add the metadata, and make the settings' inputs optional by giving them the config's values."""
    import onnx

    results, predict = get_results(config.task), config.model.predict
    inputs = {value.name: value for value in model.graph.input}
    for name in results.INPUTS:
        if name in inputs:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(inputs[name].type.tensor_type.elem_type)
            value = onnx.numpy_helper.from_array(dtype.type(getattr(predict, name)).reshape(()), name)
            model.graph.initializer.append(value)
    data = config_to_dict(config)["data"]
    written: dict[str, Any] = {
        "format": FORMAT,
        "task": config.task,
        "kind": kind,
        "classes": [category._asdict() for category in categories],
        "size": data[results.SIZE_RULE],
        "size_divisor": results.DIVISOR,
        "channels": "RGB" if config.model.in_channels == 3 else config.model.in_channels,
        "range": [0, 65535 if inputs["images"].type.tensor_type.elem_type == onnx.TensorProto.UINT16 else 255],
        "settings": [*(() if is_fixed else results.INPUTS), *results.AFTER],
        "predict": {name: getattr(predict, name) for name in (*results.INPUTS, *results.AFTER)},
        "versions": {"detector": detector.__version__, "torch": str(torch.__version__), "onnx": onnx.__version__},
        "config": config_to_dict(config),
    }
    del model.metadata_props[:]
    onnx.helper.set_model_props(
        model,
        {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in written.items()
        },
    )


def check(model: onnx.ModelProto, results: Results) -> None:
    """Refuse a graph that is not valid, or of which a dimension was fixed that must be dynamic."""
    import onnx

    onnx.checker.check_model(model, full_check=False)
    wanted = {"images": IMAGES if results.DIVISOR > 1 else IMAGES[:1], **results.OUTPUTS}
    for value in (*model.graph.input, *model.graph.output):
        shape = value.type.tensor_type.shape.dim
        for dimension, name in zip(shape, wanted.get(value.name, ()), strict=False):
            if name in DYNAMIC and dimension.dim_param != name:
                raise AssertionError(f"{value.name}: its {name} was fixed to {dimension.dim_value}")
