"""The part of ``infer`` that takes videos, streams and cameras."""

from __future__ import annotations

import argparse
import math
import os
import sys

from detector.commands import count

# The options of infer that a video takes; those of VIDEO_ONLY, images do not.
VIDEO_ONLY = ("every", "from", "to", "video", "reconnect")
TAKEN = ("checkpoint", "input", "output", "resume", "score", "draw_score", "no_images", "batch_size", "allow_code")
TAKEN += ("device", "overrides", "quiet", *VIDEO_ONLY)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "video", "--input clip.mp4, rtsp://HOST/PATH, or 0 for the first camera: predictions.jsonl, video.webm"
    )
    group.add_argument("--every", type=count, default=1, metavar="N", help="predict every Nth frame (default: 1)")
    group.add_argument("--from", type=_seconds, default=0.0, metavar="TIME", help="begin here: seconds, M:S or H:M:S")
    group.add_argument(
        "--to", type=_seconds, default=math.inf, metavar="TIME", help="end before this; of a stream, how long"
    )
    group.add_argument(
        "--video",
        choices=("webm", "mp4"),
        default="webm",
        help="how the drawn frames are written: webm, which browsers play, or mp4, which is faster (default: webm)",
    )
    group.add_argument(
        "--reconnect",
        type=_seconds,
        default=0.0,
        metavar="TIME",
        help="open a stream that has ended again, for so long (default: do not)",
    )


def is_asked(args: argparse.Namespace, parser: argparse.ArgumentParser) -> bool:
    """Whether the input is a video; refuses the options that it, or images, do not take."""
    from detector.errors import ConfigError, near_path
    from detector.inference.video import SUFFIXES, is_video, shown
    from detector.inference.video_folder import PREDICTIONS, PROGRESS

    is_asked = is_video(args.input)
    if not is_asked and args.input.lower().endswith(SUFFIXES) and not os.path.exists(args.input):  # noqa: PTH110
        raise ConfigError(f"{args.input}: no such file or folder{near_path(args.input)}")
    for name, value in vars(args).items():
        is_wrong = name not in TAKEN if is_asked else name in VIDEO_ONLY
        if is_wrong and value != parser.get_default(name):
            wanted, kind = ("images", "a video") if is_asked else ("videos", "none")
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"command line: {option} is for {wanted}, and {shown(args.input)} is {kind}; remove it")
    for name in () if is_asked else (PREDICTIONS, PROGRESS):
        if (args.output / name).exists():
            raise ConfigError(f"{args.output}: holds predictions of a video; choose another --output")
    return is_asked


def run(args: argparse.Namespace) -> int:
    from detector.errors import ConfigError, counted
    from detector.inference.exported import open_predictor
    from detector.inference.folder import PROGRESS as PROGRESS_OF_IMAGES
    from detector.inference.video import Video
    from detector.inference.video_folder import PREDICTIONS, PROGRESS, infer_video

    is_begun = (args.output / PROGRESS).exists()
    if (args.output / PROGRESS_OF_IMAGES).exists():
        raise ConfigError(f"{args.output}: holds a run on images that was not finished; choose another --output")
    if (args.output / PREDICTIONS).exists() and not is_begun:
        if args.resume:
            print(f"finished before: {args.output / PREDICTIONS}")
            return 0
        raise ConfigError(f"{args.output}: holds predictions already; choose another --output, or remove it")
    if is_begun and not args.resume:
        raise ConfigError(
            f"{args.output}: holds a run that was not finished; continue it with --resume, or choose another --output"
        )
    start, end = vars(args)["from"], args.to
    if start >= end:
        raise ConfigError(f"command line: --from {start:g} s is not before --to {end:g} s")
    predictor = open_predictor(args.checkpoint, args.device, args.overrides, args.allow_code, args.batch_size)
    if args.score is not None:
        predictor.check_score(args.score)
    video = Video(args.input, args.every, start, end, args.reconnect, predictor.config.model.in_channels)
    if start and video.is_live:
        raise ConfigError(f"command line: --from is of files, and {video.name} is a stream; remove it")
    if args.reconnect and not video.is_live:
        raise ConfigError(f"command line: --reconnect is of streams, and {video.name} is a file; remove it")
    summary = infer_video(
        predictor,
        video,
        args.output,
        score=args.score,
        draw_score=None if args.no_images else args.draw_score,
        batch_size=args.batch_size,
        drawn_as=args.video,
        resume=args.resume,
    )
    print(f"{summary.found} in {counted(summary.frames, 'frame')}: {summary.path}")
    if summary.drawn:
        print(f"drawn: {summary.drawn}")
    if summary.skipped:
        print(f"skipped {counted(summary.skipped, 'frame')} that came faster than they were predicted")
    if summary.lost:
        print(f"warning: {counted(summary.lost, 'frame')} could not be decoded", file=sys.stderr)
    if summary.note:
        print(f"warning: {video.name}: {summary.note}; what came before is done", file=sys.stderr)
    return 1 if summary.lost or (summary.note and not video.is_live) else 0


def _seconds(text: str) -> float:
    """``90``, ``1:30`` or ``0:01:30.5``."""
    try:
        parts = [float(part) for part in text.split(":")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3 or not all(0 <= part < math.inf for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: give seconds, M:S or H:M:S, as in 1:30")
    return sum(part * 60**power for power, part in enumerate(reversed(parts)))
