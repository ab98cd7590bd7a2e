"""See it work: generate a set of shapes, train on it from random weights, evaluate, and draw what was found.

detector quickstart
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detector.commands.train import RESUMABLE

TRAIN_PICTURES, VAL_PICTURES, DRAWN = 4600, 200, 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders are (default: runs)")
    parser.add_argument("--name", default="quickstart", help="the run's folder is runs/NAME (default: quickstart)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="config values, such as train.epochs=4")


def run(args: argparse.Namespace) -> int:
    import json

    import torch
    from PIL import Image

    import detector
    from detector.config import load_config
    from detector.data.shapes import write_shapes
    from detector.inference import infer_folder
    from detector.run import RunFolder
    from detector.training import fit
    from detector.visualize import contact_sheet

    folder = args.runs / args.name
    data = args.runs / f"{args.name}_data"
    paths = [f"data.{split}.{key}" for split in ("train", "val") for key in ("annotations", "images")]
    places = [data / "annotations" / "train.json", data / "images", data / "annotations" / "val.json", data / "images"]
    generated = [f"{path}={json.dumps(str(place))}" for path, place in zip(paths, places, strict=True)]
    config = load_config("quickstart.yaml", [*generated, *args.overrides])

    # Called again after an interruption it continues; called again after its end it shows the results again.
    if not (data / "annotations" / "val.json").exists():
        print(f"generating {TRAIN_PICTURES} + {VAL_PICTURES} pictures in {data}", file=sys.stderr)
        write_shapes(data, TRAIN_PICTURES, VAL_PICTURES, config.seed)
    run_folder = RunFolder(folder)
    if not fit(config, run_folder, torch.device("cpu"), resume=True):
        print("stopped; everything is saved, the same command continues", file=sys.stderr)
        return RESUMABLE
    files = sorted((data / "images").glob("val_*.jpg"))[:DRAWN]
    drawn = folder / "found"
    infer_folder(
        detector.load(run_folder.best, "cpu"), files[0].parent, files, drawn, None, 0.4, batch_size=8, workers=0
    )

    drawings = [Image.open(path) for path in sorted((drawn / "images").iterdir())]
    contact_sheet(drawings[:8], columns=4).save(drawn / "overview.jpg", quality=85)

    program = sys.argv[0] if Path(sys.argv[0]).name == "detector" else f"{sys.executable} -m detector"
    results = json.loads(run_folder.results.read_text())
    print(
        f"\nbox AP {results['AP']:.3f} (AP50 {results['AP50']:.3f}) on {VAL_PICTURES} pictures never trained on,"
        f" after {results['train_seconds']:.0f} s of training\n"
        f"  pictures    {drawn / 'overview.jpg'}, {drawn / 'images'}\n"
        f"  metrics     {run_folder.results}, {run_folder.metrics}\n"
        f"  checkpoint  {run_folder.best}\n"
        "next:\n"
        f"  {program} evaluate --checkpoint {run_folder.best}\n"
        f"  {program} infer --checkpoint {run_folder.best} --input YOUR_PICTURES/ --output found/\n"
        f"  {program} train --config retinanet_r18_fpn.yaml data.train.annotations=train.json data.train.images=images/"
        " data.val.annotations=val.json data.val.images=images/"
    )
    return 0
