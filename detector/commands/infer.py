"""Detect objects in images or a video, classify or segment them: writes predictions, and drawings.

tools/infer.py --checkpoint runs/x/best.pt --input images/ --output found/
tools/infer.py --checkpoint runs/x/best.pt --input 'images/*.jpg' --output found/ --draw-score 0.5
tools/infer.py --checkpoint runs/x/best.pt --input images/ --output found/ --score 0.3 --format cvat,yolo --crops
tools/infer.py --checkpoint runs/x/best.pt --input clip.mp4 --output found/ --every 5 --from 1:30 --to 2:00
tools/infer.py --checkpoint runs/x/best.pt --input images/ --output found/ --shard 1/8   # and 2/8 to 8/8 elsewhere
tools/infer.py --output found/ --merge
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from detector.commands import RESUMABLE, add_allow_code, count, infer_video
from detector.errors import ConfigError

if TYPE_CHECKING:
    from detector.inference.exports import Exports
    from detector.inference.folder import Images, Summary
    from detector.structures import Id

GALLERY = 200  # at most so many images in the page of --html
WORKERS = 2
UNREADABLE = 1  # exit code if some images could not be read, or changed during the run; all others are done


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", help="a .pt file, a run's folder, or an exported .onnx")
    parser.add_argument(
        "--input",
        help="a folder (searched recursively), a file or a quoted pattern, also by URL, such as s3://…; a video, the"
        " URL of a stream, a camera",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        help="a new folder, for the predictions, the drawings in images/ and a segmenter's masks/",
    )
    parser.add_argument(
        "--annotations",
        metavar="PATH",
        help="annotations in any format, whose image ids predictions.json takes by file name",
    )
    parser.add_argument("--resume", action="store_true", help="continue a run that was stopped, or start it")
    parser.add_argument(
        "--shard",
        metavar="K/N",
        help="predict part K of N (from 1), into OUTPUT/shard-K-of-N; auto: what Slurm says, auto/N: Kubernetes too",
    )
    parser.add_argument(
        "--engine", choices=["ray"], help="predict in blocks by Ray's actors, on RAY_ADDRESS if it is set, else here"
    )
    parser.add_argument("--actors", type=count, help="models that --engine ray holds (default: one per GPU or CPU)")
    parser.add_argument("--merge", action="store_true", help="write OUTPUT from all shards in it, predicting nothing")
    parser.add_argument(
        "--score", type=_probability, help="lowest score of an object in predictions.json (default: the config's)"
    )
    parser.add_argument(
        "--draw-score",
        type=_probability,
        default=0.4,
        help="lowest score that is drawn, cropped and counted (default: 0.4)",
    )
    parser.add_argument("--no-images", action="store_true", help="write the predictions only")
    parser.add_argument(
        "--format",
        action="append",
        default=[],
        metavar="NAMES",
        help="also write coco, yolo, voc, csv, cvat or labelstudio; several as in cvat,yolo",
    )
    parser.add_argument(
        "--crops", action="store_true", help="also write each object as an image, in a folder per class"
    )
    parser.add_argument(
        "--counts", action="store_true", help="also write counts.csv, with the objects per image and class"
    )
    parser.add_argument("--html", action="store_true", help="also write gallery.html, a page of the drawings")
    parser.add_argument("--batch-size", type=count, default=8, help="most images, or tiles, per batch (default: 8)")
    parser.add_argument(
        "--workers", type=partial(count, least=0), help=f"processes that read images (default: {WORKERS})"
    )
    infer_video.add_arguments(parser)
    add_allow_code(parser)
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="config values, such as data.tiles.size=512")


def run(args: argparse.Namespace) -> int:
    try:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        if args.merge:
            return _merge(args)
        if missing := [f"--{name}" for name in ("checkpoint", "input") if getattr(args, name) is None]:
            raise ConfigError(f"command line: the following arguments are required: {', '.join(missing)}; see --help")
        return infer_video.run(args) if infer_video.is_asked(args, parser) else _run(args)
    except KeyboardInterrupt:
        print(f"stopped; continue with --resume: {args.output}", file=sys.stderr)
        return RESUMABLE


def _run(args: argparse.Namespace) -> int:
    from detector.inference.exported import open_predictor
    from detector.inference.exports import Exports
    from detector.inference.folder import infer_folder
    from detector.inference.images import TiledPredictor
    from detector.inference.parts import which_shard
    from detector.tasks import get_results

    _check_options(args)
    lowest = args.draw_score
    exports = Exports(formats(args.format), lowest if args.crops else None, lowest if args.counts else None)
    if "yolo" in exports.formats and importlib.util.find_spec("yaml") is None:
        raise ConfigError("command line: --format yolo needs pyyaml, which is not installed: pip install pyyaml")
    shard = which_shard(args.shard, os.environ) if args.shard else None
    if shard:
        args.output /= shard.folder
    if (code := _code_of_finished(args, exports)) is not None:
        return code
    images, ids, notes = _find_images(args, exports)
    if shard:
        images = shard.of(images)
    source = args.checkpoint, args.device, args.overrides, args.allow_code, args.batch_size
    predictor = open_predictor(*source)
    results = get_results(predictor.config.task)
    if ids is not None and not results.HAS_IDS:
        raise ConfigError(f"command line: --annotations: {args.checkpoint} is of {predictor.config.task}; remove it")
    if exports.asked() and not results.HAS_BOXES:
        raise ConfigError(
            f"command line: --format, --crops and --counts are of boxes, but {args.checkpoint} is of"
            f" {predictor.config.task}; remove them"
        )
    if args.score is not None:
        predictor.check_score(args.score)  # before any work is done
    for note in notes:
        print(note, file=sys.stderr)
    asked = {
        "score": args.score,
        "draw_score": None if args.no_images else args.draw_score,
        # A batch of tiles is of one image, and a run is resumed image by image.
        "batch_size": 1 if isinstance(predictor, TiledPredictor) else args.batch_size,
        "workers": WORKERS if args.workers is None else args.workers,
        "ids": ids,
        "exports": exports,
    }
    engine = None
    if args.engine:
        from detector.ray import blocks_on_ray

        engine = partial(blocks_on_ray, source=source, output=args.output, actors=args.actors, asked=asked)
    summary = infer_folder(predictor, images, args.output, **asked, resume=args.resume, engine=engine)
    return _report(summary, args)


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that contradict each other, or need what is not installed."""
    if args.actors and not args.engine:
        raise ConfigError("command line: --actors is for --engine ray; remove it, or add that")
    if args.shard and args.engine:
        raise ConfigError("command line: --engine divides the images by itself; remove --shard")
    if args.engine:
        try:
            from detector.ray import check_ray
        except ModuleNotFoundError:  # the runtime is without it
            raise ConfigError("command line: --engine ray needs the whole package: pyramid-detector[ray]") from None
        check_ray()
    if args.shard and args.html:
        raise ConfigError("command line: --html: a shard writes no page; give it with --merge")
    if args.html and args.no_images:
        raise ConfigError("command line: --html shows the drawings; remove --no-images")
    if args.html and importlib.util.find_spec("jinja2") is None:
        raise ConfigError("command line: --html needs jinja2, which is not installed; remove it")


def _code_of_finished(args: argparse.Namespace, exports: Exports) -> int | None:
    """The exit code of a run that was finished before; None where there is work. Raises where it is another run's."""
    from detector.config.tasks import TASKS
    from detector.inference.folder import ERRORS, PROGRESS
    from detector.system.atomic import check_new
    from detector.tasks import get_results

    if (args.output / PROGRESS).exists():
        if args.resume:
            return None
        raise ConfigError(
            f"{args.output}: holds a run that was not finished; continue it with --resume, or choose another --output"
        )
    files = (args.output / get_results(task).FILE for task in TASKS)
    found = next((file for file in files if file.exists()), None)
    if found is None:
        check_new(*exports.targets(args.output).values())
        return None
    if not args.resume:
        raise ConfigError(f"{args.output}: holds predictions already; choose another --output, or remove it")
    for path in exports.targets(args.output).values():
        if not path.exists():
            raise ConfigError(f"{args.output}: was finished without {path.name}; choose another --output to write it")
    print(f"finished before: {found}")
    return UNREADABLE if (args.output / ERRORS).exists() else 0


def _find_images(args: argparse.Namespace, exports: Exports) -> tuple[Images, dict[str, Id] | None, list[str]]:
    """The images of ``--input``, their ids if ``--annotations`` has them, and what to say about them."""
    from detector.data.names import is_url
    from detector.errors import counted
    from detector.inference.exports import check_labels
    from detector.inference.folder import find_images, known_ids
    from detector.inference.urls import find_url_images
    from detector.system.json_stream import show_text

    images, ids = (find_url_images if is_url(args.input) else find_images)(args.input), None
    notes = [f"{args.input}: {images.note}"] if images.note else []
    if args.annotations:
        images, ids, unknown = known_ids(images, args.annotations)
        if unknown:
            names = ", ".join(map(show_text, unknown[:5])) + (", …" if len(unknown) > 5 else "")
            notes.append(f"skipped {counted(len(unknown), 'image')} that {args.annotations} does not list: {names}")
    check_labels(exports, [images.name(index) for index in range(len(images))], args.input)
    return images, ids, notes


def _merge(args: argparse.Namespace) -> int:
    from detector.inference.parts import find_shards, join
    from detector.system.atomic import check_new
    from detector.tasks import get_results

    asked = ("checkpoint", "input", "shard", "engine", "annotations", "score", "format", "crops", "counts", "overrides")
    for name in asked:
        if getattr(args, name):
            given = {"overrides": f"{args.overrides[:1]}"}.get(name, f"--{name}")
            raise ConfigError(f"command line: --merge writes what the shards were asked for; remove {given}")
    shards = find_shards(args.output)
    check_new(args.output / get_results(shards[0].asked["task"]).FILE)
    return _report(join(shards, args.output), args)


def _report(summary: Summary, args: argparse.Namespace) -> int:
    """Print what was done; returns the exit code."""
    from detector.errors import counted
    from detector.inference.folder import ERRORS

    print(f"{summary.found} in {counted(summary.read, 'image')}: {summary.path}")
    for line in summary.exports:
        print(line)
    if args.html:
        from detector.analysis.gallery import show_drawings

        page = args.output / "gallery.html"
        shown = show_drawings(page, f"Found by {args.checkpoint or args.output}", args.output / "images", GALLERY)
        print(f"{counted(shown, 'drawing')}: {page}")
    for error in summary.errors:
        print(error)
    if summary.num_errors:
        print(
            f"{summary.num_errors:,} of {counted(summary.images, 'image')} could not be read, or changed during the"
            f" run: {args.output / ERRORS}"
        )
    return UNREADABLE if summary.num_errors else 0


def formats(given: Sequence[str]) -> tuple[str, ...]:
    """Names of formats, each of ``given`` one or several separated by commas."""
    from detector.data.formats.writing import WRITERS
    from detector.errors import one_of

    names = [name.strip() for text in given for name in text.split(",")]
    for name in names:
        if name not in WRITERS:
            raise ConfigError(f"command line: --format: {name!r} is not a format; use {one_of(WRITERS)}")
    return tuple(dict.fromkeys(names))


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value
