"""See it work: generate images of shapes, train on them from random weights, evaluate, and draw the detections.

detector quickstart
detector quickstart --task classification
detector quickstart --task segmentation
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detector.commands import RESUMABLE
from detector.config.tasks import TASKS

DRAWN = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", choices=TASKS, default="detection", help="what to learn (default: detection)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders are (default: runs)")
    parser.add_argument("--name", help="the run's folder is runs/NAME (default: the config's name)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="config values, such as train.epochs=4")


def run(args: argparse.Namespace) -> int:
    import json

    import torch
    from PIL import Image

    import detector
    from detector.config.loader import load_config
    from detector.inference.folder import Images, find_images, infer_folder
    from detector.reports import figure
    from detector.reports.drawing import contact_sheet
    from detector.tasks import get_core
    from detector.training.fitting import fit
    from detector.training.run_folder import RunFolder

    plan = get_core(args.task).QUICKSTART
    name = Path(plan.config).stem if args.name is None else args.name
    run_folder = RunFolder.named(args.runs, name)
    folder, data = run_folder.path, args.runs / f"{name}_data"
    generated = [f"data.{key}={json.dumps(str(data / path))}" for key, path in plan.data.items()]
    config = load_config(plan.config, [*generated, *args.overrides])

    # The same command continues after an interruption, and shows the results again after the end.
    if not (data / "complete").exists():
        print(f"generating {plan.images[0]} + {plan.images[1]} images in {data}", file=sys.stderr)
        plan.write(data, *plan.images, config.seed)
        (data / "complete").touch()
    if not fit(config, run_folder, torch.device("cpu"), resume=True):
        print("stopped; everything is saved, the same command continues", file=sys.stderr)
        return RESUMABLE
    root = data / plan.data["val.images"]
    names = [path.relative_to(root).as_posix() for path in find_images(str(root)) if "train_" not in path.name]
    images = Images(root, names[:: max(1, len(names) // DRAWN)][:DRAWN])
    drawn = folder / "found"
    infer_folder(detector.load(run_folder.best, "cpu"), images, drawn, None, 0.4, batch_size=8, workers=0)

    drawings = [Image.open(path) for path in sorted((drawn / "images").rglob("*.jpg"))]
    contact_sheet(drawings[:: len(drawings) // 8][:8], columns=4).save(drawn / "overview.jpg", quality=85)

    program = sys.argv[0] if Path(sys.argv[0]).name == "detector" else f"{sys.executable} -m detector"
    results = json.loads(run_folder.results.read_text())
    metric = get_core(args.task).main_metric(config)
    print(
        f"\n{metric} {figure(results[metric])} on data that it was not trained on, after"
        f" {results['train_seconds']:.0f} s of training\n"
        f"  images      {drawn / 'overview.jpg'}, {drawn / 'images'}\n"
        f"  metrics     {run_folder.results}, {run_folder.metrics}\n"
        f"  checkpoint  {run_folder.best}\n"
        "next:\n"
        f"  {program} evaluate --checkpoint {run_folder.best}\n"
        f"  {program} infer --checkpoint {run_folder.best} --input YOUR_IMAGES/ --output found/\n"
        f"  {program} train --config {plan.own_data}"
    )
    return 0
