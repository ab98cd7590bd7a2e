"""What tiles are worth: training and inference by tiles against shrinking to the same input size; not a test.

PYTHONPATH=. python tests/small_objects.py generated work/    # images of 4,000 px with objects of 12 px; needs pyvips
PYTHONPATH=. python tests/small_objects.py aerial work/ --source deepforest/data/    # see docs/BENCHMARKS.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import pyvips

import detector
from detector.data.synthetic import CLASSES, POLYGONS

SIDE, OBJECT, MOST = 4000, 12, 150  # pixels of an image and of an object; objects per image
SETTINGS = {  # of each set: the side of a tile, the input size of both networks, and steps of two images
    "generated": (256, 256, 600),
    "aerial": (400, 256, 500),
}
TRAIN_AERIAL = ["2019_YELL_2_541000_4977000_image_crop", "OSBS_029"]
TEST_AERIAL = ["2019_YELL_2_528000_4978000_image_crop2"]


def draw(rng: np.random.Generator) -> tuple[np.ndarray, list[list[int]], list[int]]:
    """Clouds and grain with small shapes of all classes: an image, boxes xywh and labels."""
    image = cv2.resize(rng.integers(0, 256, (100, 100, 3)).astype(np.float32), (SIDE, SIDE))
    image = np.clip(image + rng.normal(0, 8, (SIDE, SIDE, 1)), 0, 255).astype(np.uint8)
    free, boxes, labels = np.ones((SIDE, SIDE), dtype=bool), [], []
    for _ in range(MOST):
        left, top = rng.integers(0, SIDE - OBJECT, 2).tolist()
        own = slice(top, top + OBJECT), slice(left, left + OBJECT)
        if not free[own].all():
            continue
        free[own] = False
        label = int(rng.integers(len(CLASSES)))
        polygon, radius = POLYGONS[CLASSES[label]], (OBJECT - 1) / 2
        color = (image[own].mean(axis=(0, 1)) + 128) % 256
        if polygon is None:
            y, x = np.mgrid[:OBJECT, :OBJECT] - radius
            image[own][x**2 + y**2 <= (OBJECT / 2) ** 2] = color
        else:
            corners = (np.rint((polygon + 1) * radius) + np.array([left, top])).astype(np.int32)
            cv2.fillPoly(image, [corners], color.tolist())
        boxes.append([left, top, OBJECT, OBJECT])
        labels.append(label)
    return image, boxes, labels


def generate(folder: Path, side: int, train: int = 12, val: int = 4) -> tuple[list[str], list[str]]:
    """Write the images as they are and shrunk to ``side``, in COCO format; returns the overrides that name each."""
    whole, shrunk = folder / "whole", folder / "shrunk"
    overrides: dict[Path, list[str]] = {whole: [], shrunk: []}
    index = 0
    for split, count in (("train", train), ("val", val)):
        listed = []
        for _ in range(count):
            index += 1
            image, boxes, labels = draw(np.random.default_rng([0, index]))
            listed.append((index, np.array(boxes), labels))
            for kind in overrides:
                (kind / "images").mkdir(parents=True, exist_ok=True)
            small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(shrunk / "images" / f"{index}.tif"), small[:, :, ::-1])
            # Stored in tiles, so that a tile is read without decoding the rest.
            stored = pyvips.Image.new_from_array(image, interpretation="srgb")
            stored.tiffsave(str(whole / "images" / f"{index}.tif"), tile=True, compression="jpeg", Q=92)
        for kind, length in ((whole, SIDE), (shrunk, side)):
            write_coco(kind / f"{split}.json", listed, length)
            overrides[kind] += [f"data.{split}.annotations={kind}/{split}.json", f"data.{split}.images={kind}/images"]
    return overrides[whole], overrides[shrunk]


def write_coco(path: Path, listed: list[tuple[int, np.ndarray, list[int]]], side: int) -> None:
    """A COCO file of images of ``side`` px with boxes of images of ``SIDE`` px."""
    images = [{"id": index, "file_name": f"{index}.tif", "height": side, "width": side} for index, _, _ in listed]
    rows = [(index, *row) for index, boxes, labels in listed for row in zip(boxes * (side / SIDE), labels, strict=True)]
    annotations = [
        {
            "id": number + 1,
            "image_id": index,
            "category_id": label + 1,
            "bbox": box.tolist(),
            "area": float(box[2] * box[3]),
            "iscrowd": 0,
        }
        for number, (index, box, label) in enumerate(rows)
    ]
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def link_aerial(folder: Path, source: Path) -> list[str]:
    """Trees in images of the deepforest package (Pascal VOC): some to train on, another to test on."""
    overrides = []
    for split, names in (("train", TRAIN_AERIAL), ("val", TEST_AERIAL)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for name in names:
            for suffix in (".png", ".xml"):
                link = folder / split / f"{name}{suffix}"
                link.unlink(missing_ok=True)
                link.symlink_to((source / f"{name}{suffix}").absolute())
        overrides += [f"data.{split}.annotations={folder}/{split}", f"data.{split}.images={folder}/{split}"]
    return [*overrides, "data.format=voc", "data.one_based=false", "data.invalid_boxes=clip"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=list(SETTINGS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", type=Path, help="of aerial: the package's folder of data")
    parser.add_argument("--steps", type=int, help="of training (default: what the documents have)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of both, such as model.backbone={...}")
    args = parser.parse_intermixed_args()
    if args.set == "aerial" and args.source is None:
        parser.error("aerial needs --source")
    size, side, steps = SETTINGS[args.set]
    folder = args.folder / args.set
    if args.set == "generated":
        whole, shrunk = generate(folder, side)
    else:
        whole = shrunk = link_aerial(folder, args.source)
    own = [f"data.resize={{long: {side}}}", f"train.steps={args.steps or steps}", "train.epochs=100000"]
    own += ["eval.every_epochs=100000", f"seed={args.seed}", "model.predict.max_detections=1000", *args.overrides]
    tiles = f"data.tiles={{size: {size}, overlap: 0.2, negatives: 0.1}}"
    for name, given in (("tiles", [*whole, *own, tiles]), ("shrunk", [*shrunk, *own])):
        run = detector.train("scratch.yaml", given, f"{name}_{args.seed}", folder / "runs", resume=True)
        found = json.loads((run / "results.json").read_text())
        print(f"{name}: AP {found['AP']:.3f}, AP50 {found['AP50']:.3f}, AR {found['AR100']:.3f}", flush=True)


if __name__ == "__main__":
    main()
