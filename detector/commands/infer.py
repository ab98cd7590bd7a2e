"""Detect objects in images, classify or segment them: writes predictions.json or predictions.csv, and drawings.

tools/infer.py --checkpoint runs/x/best.pt --input images/ --output found/
tools/infer.py --checkpoint runs/x/best.pt --input 'images/*.jpg' --output found/ --draw-score 0.5
tools/infer.py --checkpoint runs/x/best.pt --input images/ --output found/ --score 0.3 --format cvat,yolo --crops
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from detector.commands import RESUMABLE, add_allow_code, count

GALLERY = 200  # at most so many images in the page of --html
UNREADABLE = 1  # exit code if some images could not be read, or changed during the run; all others are done


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a .pt file, a run's folder, or an exported .onnx")
    parser.add_argument("--input", required=True, help="a folder (searched recursively), a file, or a quoted pattern")
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
        dest="formats",
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
        "--workers", type=partial(count, least=0), default=2, help="processes that read images (default: 2)"
    )
    add_allow_code(parser)
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="config values, such as data.tiles.size=512")


def run(args: argparse.Namespace) -> int:
    try:
        return _run(args)
    except KeyboardInterrupt:
        print(f"stopped; continue with --resume: {args.output}", file=sys.stderr)
        return RESUMABLE


def _run(args: argparse.Namespace) -> int:
    from detector.config.tasks import TASKS
    from detector.errors import ConfigError, counted
    from detector.inference.exports import Exports, check_labels
    from detector.inference.folder import ERRORS, PROGRESS, find_images, infer_folder, known_ids
    from detector.system.atomic import check_new
    from detector.system.json_stream import show_text
    from detector.tasks import get_results

    if args.html and args.no_images:
        raise ConfigError("command line: --html shows the drawings; remove --no-images")
    lowest = args.draw_score
    exports = Exports(formats(args.formats), lowest if args.crops else None, lowest if args.counts else None)
    is_begun = (args.output / PROGRESS).exists()
    if args.html and importlib.util.find_spec("jinja2") is None:
        raise ConfigError("command line: --html needs jinja2, which is not installed; remove it")
    if "yolo" in exports.formats and importlib.util.find_spec("yaml") is None:
        raise ConfigError("command line: --format yolo needs pyyaml, which is not installed: pip install pyyaml")
    for name in (get_results(task).FILE for task in TASKS):
        if (args.output / name).exists() and not is_begun:
            if args.resume:
                for path in exports.targets(args.output).values():
                    if not path.exists():
                        raise ConfigError(
                            f"{args.output}: was finished without {path.name}; choose another --output to write it"
                        )
                print(f"finished before: {args.output / name}")
                return UNREADABLE if (args.output / ERRORS).exists() else 0
            raise ConfigError(f"{args.output}: holds predictions already; choose another --output, or remove it")
    if is_begun and not args.resume:
        raise ConfigError(
            f"{args.output}: holds a run that was not finished; continue it with --resume, or choose another --output"
        )
    if not is_begun:
        check_new(*exports.targets(args.output).values())
    images, ids = find_images(args.input), None
    notes = [f"{args.input}: {images.note}"] if images.note else []
    if args.annotations:
        images, ids, unknown = known_ids(images, args.annotations)
        if unknown:
            names = ", ".join(map(show_text, unknown[:5])) + (", …" if len(unknown) > 5 else "")
            notes.append(f"skipped {counted(len(unknown), 'image')} that {args.annotations} does not list: {names}")
    check_labels(exports, [images.name(index) for index in range(len(images))], args.input)

    from detector.inference.exported import open_predictor
    from detector.inference.images import TiledPredictor, by_tiles

    predictor = open_predictor(args.checkpoint, args.device, args.overrides, args.allow_code)
    if ids is not None and not get_results(predictor.config.task).HAS_IDS:
        raise ConfigError(f"command line: --annotations: {args.checkpoint} is of {predictor.config.task}; remove it")
    if exports.asked() and not get_results(predictor.config.task).HAS_BOXES:
        raise ConfigError(
            f"command line: --format, --crops and --counts are of boxes, but {args.checkpoint} is of"
            f" {predictor.config.task}; remove them"
        )
    if args.score is not None:
        predictor.check_score(args.score)  # before any work is done
    predictor = by_tiles(predictor, args.batch_size)
    for note in notes:
        print(note, file=sys.stderr)
    summary = infer_folder(
        predictor,
        images,
        args.output,
        score=args.score,
        draw_score=None if args.no_images else args.draw_score,
        # A batch of tiles is of one image, and a run is resumed image by image.
        batch_size=1 if isinstance(predictor, TiledPredictor) else args.batch_size,
        workers=args.workers,
        resume=args.resume,
        ids=ids,
        exports=exports,
    )
    print(f"{summary.found} in {counted(summary.read, 'image')}: {summary.path}")
    for line in summary.exports:
        print(line)
    if args.html:
        from detector.analysis.gallery import show_drawings

        page = args.output / "gallery.html"
        shown = show_drawings(page, f"Found by {args.checkpoint}", args.output / "images", GALLERY)
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
    from detector.errors import ConfigError, one_of

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
