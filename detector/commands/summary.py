"""Show what a model costs: parameters, multiply-adds, memory, the size of every level and, with --time, latency.

tools/summary.py --config retinanet_r50_fpn.yaml
tools/summary.py --config retinanet_r50_fpn.yaml --size 640 640 model.fpn.channels=128
tools/summary.py --compare retinanet_r18_fpn.yaml retinanet_r50_fpn.yaml --time
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.commands import add_allow_code, count

if TYPE_CHECKING:
    from detector.analysis.limits import Rates
    from detector.analysis.summary import Latency, Level, Summary
    from detector.config.schema import Config

LONGEST_SIDE = 65_535  # pixels; the limit of JPEG
RUNS = 10

Row = tuple[str, list[str]]  # a label, and a cell for each model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", help="a YAML file, the name of one in configs/, a checkpoint or a run's folder")
    parser.add_argument("--compare", nargs="+", metavar="CONFIG", help="show several configs side by side")
    parser.add_argument(
        "--size", nargs=2, type=int, metavar=("H", "W"), help="image size (default: the config's own, padded)"
    )
    parser.add_argument(
        "--classes", type=count, help="number of classes (default: data.classes, or those of COCO or ImageNet)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--time",
        action="store_true",
        help="also measure the time of a forward pass, and whether the loaders or the device limit the training",
    )
    parser.add_argument("--runs", type=count, help=f"with --time: number of runs (default: {RUNS})")
    parser.add_argument("--device", help="with --time: cpu, cuda or cuda:1 (default: a GPU if there is one)")
    add_allow_code(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="config values, such as model.fpn.channels=64"
    )


def run(args: argparse.Namespace) -> int:
    check_arguments(args)
    if args.time:
        import torch

        # Random weights give denormals, which slow convolutions several times on a CPU; set before threads start.
        torch.set_flush_denormal(True)
    names = args.compare or [args.config]
    configs, classes = zip(*(open_config(name, args.overrides, args.allow_code) for name in names), strict=True)
    size = tuple(args.size) if args.size else None
    summaries = [
        summarise_config(name, config, args.classes or own, size)
        for name, config, own in zip(names, configs, classes, strict=True)
    ]
    latencies, note = time_models(configs, summaries, args.device, args.runs or RUNS) if args.time else ([], "")
    limits = [find_limit(config, args.device) for config in configs] if args.time else []
    if args.json:
        objects = as_objects(names, summaries, latencies, limits)
        print(json.dumps(objects if args.compare else objects[0]))
    else:
        print(format_rows(table(names, summaries, latencies)))
        if note:
            print(note)
        for name, limit in zip(names, limits, strict=False):
            print(f"{name}: " * bool(args.compare) + (limit if isinstance(limit, str) else limit.describe()))
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse contradictions and options without effect."""
    from detector.errors import ConfigError

    if bool(args.config) == bool(args.compare):
        raise ConfigError("command line: give either --config or --compare")
    # argparse takes an override after --compare for one more config.
    mistaken = [name for name in args.compare or [] if "=" in name and not Path(name).is_file()]
    if args.compare and (args.overrides or mistaken):
        override = (args.overrides + mistaken)[0]
        raise ConfigError(f"command line: {override}: --compare takes configs as they are; overrides need --config")
    if args.size:
        from detector.structures import SIZE_DIVISOR

        height, width = args.size
        if not all(SIZE_DIVISOR <= side <= LONGEST_SIDE for side in args.size):
            limits = f"{SIZE_DIVISOR} to {LONGEST_SIDE:,}"
            raise ConfigError(f"command line: --size {height} {width}: a side has {limits} pixels")
    for name, value in (("runs", args.runs), ("device", args.device)):
        if value is not None and not args.time:
            raise ConfigError(f"command line: --{name} has no effect without --time; add it, or remove --{name}")


def open_config(name: str, overrides: Sequence[str], allow_code: bool) -> tuple[Config, int | None]:
    """A config, and the number of classes of a checkpoint or a run."""
    from detector.config.loader import CHECKPOINT_SUFFIXES, load_config, refuse_auto

    if Path(name).is_dir() or Path(name).suffix in CHECKPOINT_SUFFIXES:
        from detector.checkpoints.opening import open_model

        _, config, categories = open_model(name, overrides, "cpu", allow_code=allow_code)
        return config, len(categories)
    config = load_config(name, overrides, allow_code)
    refuse_auto(config, name)
    return config, None


def summarise_config(name: str, config: Config, classes: int | None, size: tuple[int, int] | None) -> Summary:
    """The cost of one config's model; errors name the config."""
    from detector.analysis.summary import summarise
    from detector.errors import ConfigError
    from detector.tasks import get_task

    try:
        task = get_task(config)
        classes = classes or len(config.data.classes or ()) or task.CLASSES
        return summarise(config.model, classes, size or task.largest_input(config))
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def time_models(
    configs: Sequence[Config], summaries: Sequence[Summary], device_name: str | None, runs: int
) -> tuple[list[Latency], str]:
    """Each model's latency, and a line that says what was measured."""
    import torch

    from detector.analysis.summary import measure_latencies
    from detector.models import build_model
    from detector.system.device import choose_device

    device = choose_device(device_name)
    models = [build_model(config.model, own.classes) for config, own in zip(configs, summaries, strict=True)]
    images = [
        torch.randint(
            256, (1, own.in_channels, *own.size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        for own in summaries
    ]
    threads = f"cpu (threads: {torch.get_num_threads()})"
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else threads
    note = (
        "latency: Model.forward alone, without reading, resizing or post-processing; one image in float32 on"
        f" {place}, median and quartiles of {runs} runs"
    )
    return measure_latencies(models, images, device, runs), note


def find_limit(config: Config, device_name: str | None) -> Rates | str:
    """How fast the config's data are loaded and its training computes, or why that was not measured."""
    from detector.analysis.limits import measure_rates
    from detector.errors import DetectorError
    from detector.system.device import choose_device

    if config.train.batch_size == "auto":
        return "training: not measured: train.batch_size is auto"
    try:
        return measure_rates(config, choose_device(device_name))
    except DetectorError as error:
        return f"training: not measured: {error}"


def as_objects(
    names: Sequence[str],
    summaries: Sequence[Summary],
    latencies: Sequence[Latency] = (),
    limits: Sequence[Rates | str] = (),
) -> list[dict[str, Any]]:
    """What ``--json`` prints for each model; MB are 10^6 bytes."""
    objects: list[dict[str, Any]] = [
        {
            "config": name,
            "classes": own.classes,
            "parameters": own.parameters,
            "trainable_parameters": own.trainable_parameters,
            "macs": own.macs,
            "activation_mb": own.activation_bytes / 1e6,
            "size": list(own.size),
            "levels": {
                key: {part: value for part, value in level._asdict().items() if value is not None}
                for key, level in own.levels.items()
            },
            "anchors": own.anchors,
        }
        for name, own in zip(names, summaries, strict=True)
    ]
    for entry, latency in zip(objects, latencies, strict=False):  # either none or one per model
        entry["latency_ms"] = latency.median
        entry["latency_spread_ms"] = [latency.low, latency.high]
        entry["latency_ratio"] = latency.median / latencies[0].median
    for entry, limit in zip(objects, limits, strict=False):
        if not isinstance(limit, str):
            entry["training"] = limit._asdict() | {"limit": limit.limit}
    return objects


def table(names: Sequence[str], summaries: Sequence[Summary], latencies: Sequence[Latency] = ()) -> list[Row]:
    """The table for a terminal: one column per model."""
    rows: list[Row] = [
        ("", list(names)),
        ("input", [f"{own.in_channels} × {own.size[0]} × {own.size[1]}" for own in summaries]),
        ("classes", [f"{own.classes:,}" for own in summaries]),
        ("parameters", [f"{human(own.parameters)}  ({own.parameters:,})" for own in summaries]),
        ("  trainable", [f"{human(own.trainable_parameters)}  ({own.trainable_parameters:,})" for own in summaries]),
        ("multiply-adds", [human(own.macs) for own in summaries]),
        ("activations", [human(own.activation_bytes, "B") for own in summaries]),
        ("anchors", [f"{own.anchors:,}" if own.anchors else "–" for own in summaries]),
    ]
    if latencies:
        rows.append(("latency", [f"{own.median:.1f} ms  ({own.low:.1f} – {own.high:.1f})" for own in latencies]))
    if len(latencies) > 1:
        rows.append(("  to the first", [f"× {own.median / latencies[0].median:.2f}" for own in latencies]))
    # First C2 to C5 of each network, in the order given; then the pyramid levels, finest first.
    strides = {key: level.stride for own in summaries for key, level in own.levels.items()}
    columns = [format_levels(own.levels) for own in summaries]
    for key in sorted(strides, key=lambda key: key if key[-2] == "P" else ""):
        rows.append((f"{key}  stride {strides[key]}", [column.get(key, "–") for column in columns]))
    return rows


def format_levels(levels: dict[str, Level]) -> dict[str, str]:
    """``"256 × 100 × 168  anchors 151,200"`` for each level, numbers aligned."""
    numbers = {
        key: [f"{level.channels}", f"{level.height}", f"{level.width}", f"{level.anchors or 0:,}"]
        for key, level in levels.items()
    }
    widths = [max(map(len, column)) for column in zip(*numbers.values(), strict=True)]
    cells = {}
    for key, own in numbers.items():
        *shape, anchors = map(str.rjust, own, widths)
        cells[key] = " × ".join(shape) + (f"  anchors {anchors}" if levels[key].anchors else "")
    return cells


def format_rows(rows: Sequence[Row]) -> str:
    """Lines of left-aligned columns."""
    lines = [[label, *cells] for label, cells in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("   ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def human(number: int, unit: str = "") -> str:
    """``"34.0 M"``, ``"743.3 MB"``: one decimal, and a prefix of a power of 1000."""
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {prefix}{unit}"
    return f"{number} {unit}".rstrip()
