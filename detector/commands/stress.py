"""Kill, soak and overload real runs, and check that nothing is lost (docs/RELIABILITY.md).

tools/stress.py kill --kills 200        train a tiny model, SIGKILL it at random moments, resume, compare bit for bit
tools/stress.py soak                    2,000 steps and 20 evaluations: does memory grow, do descriptors leak
tools/stress.py infer --images 100000   time to the first batch, memory, killed half way and resumed
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detector.commands import count
from detector.config.tasks import TASKS
from detector.errors import counted

FAILED = 1  # exit code when a promise was broken
SETTLED = 200  # steps after which memory must not grow by more than GROWTH
GROWTH = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("kill", "soak", "infer"), help="what to do to the runs")
    parser.add_argument("--task", choices=TASKS, default="detection", help="of the runs (default: detection)")
    parser.add_argument("--kills", type=count, default=100, help="kill: number of kills (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="kill: seed of the moments (default: 0)")
    parser.add_argument("--steps", type=count, default=2000, help="soak: number of steps, in 20 parts (default: 2000)")
    parser.add_argument("--images", type=count, default=100_000, help="infer: number of images (default: 100000)")
    parser.add_argument(
        "--folder", type=Path, help="a new folder for the runs (default: a temporary one, removed at the end)"
    )


def run(args: argparse.Namespace) -> int:
    import tempfile

    from detector.system.atomic import check_new

    if args.folder is not None:
        check_new(args.folder)
        return _stress(args, args.folder)
    with tempfile.TemporaryDirectory(prefix="detector_stress_") as folder:
        return _stress(args, Path(folder))


def _stress(args: argparse.Namespace, folder: Path) -> int:
    from detector.dev import stress
    from detector.tasks import get_core

    data, write = folder / "data", get_core(args.task).QUICKSTART.write
    if args.what == "kill":
        write(data, 12, 6, 0)
        kills = stress.kill_and_resume(data, folder / "runs", args.kills, args.seed, args.task)
        print(kills)
        for difference in kills.differences:
            print(difference)
        return FAILED if kills.differences else 0
    if args.what == "soak":
        write(data, args.steps // 20 * 2, 6, 0)
        settled = min(SETTLED, args.steps // 2)
        soaked = stress.soak(data, folder / "runs", args.steps, 20, settled, args.task)
        print(soaked)
        return FAILED if soaked.growth > GROWTH or soaked.late.descriptors > soaked.early.descriptors else 0
    print(f"generating {counted(args.images, 'image')}", file=sys.stderr)
    stress.link_images(folder / "images", args.images)
    checkpoint = stress.tiny_checkpoint(folder / "tiny.pt", args.task)
    inferred = stress.infer(checkpoint, folder / "images", folder / "found", args.images, args.task)
    print(inferred)
    return 0 if inferred.is_same and inferred.late.memory < (1 + GROWTH) * inferred.early.memory else FAILED
