"""List run folders: how far each is, its best score and its times. Nothing is written.

tools/runs.py
tools/runs.py --runs sweep/ --sort best
tools/runs.py --json
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders are (default: runs)")
    parser.add_argument(
        "--sort",
        choices=["name", "best", "changed"],
        default="name",
        help="by name, by the best score (highest first) or by the last change (latest first)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")


def run(args: argparse.Namespace) -> int:
    import json
    import time

    from detector.analysis.runs import as_text, list_runs

    runs = list_runs(args.runs)
    if args.sort == "best":
        runs.sort(key=lambda run: (run.metric or "", -1 if run.best is None else run.best), reverse=True)
    elif args.sort == "changed":
        runs.sort(key=lambda run: run.changed, reverse=True)
    print(json.dumps([run._asdict() for run in runs], indent=2) if args.json else as_text(runs, time.time()))
    return 0
