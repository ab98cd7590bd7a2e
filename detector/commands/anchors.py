"""Show how well a config's anchors cover the objects of its training data, and suggest anchors that cover more.

tools/anchors.py --config mine.yaml --html anchors.html
tools/anchors.py --config mine.yaml --suggest --write mine_anchors.yaml
tools/anchors.py --config retinanet_r50_fpn.yaml data.train.annotations=train.json --json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detector.commands import add_allow_code

if TYPE_CHECKING:
    from detector.analysis.anchors.report import Suggestion
    from detector.analysis.anchors.search import Split
    from detector.analysis.anchors.study import Study
    from detector.config.schema import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    parser.add_argument(
        "--suggest", action="store_true", help="search for anchors that fit, and compare other pyramids"
    )
    parser.add_argument(
        "--write", type=Path, metavar="OUT.yaml", help="with --suggest: write a config with the suggested anchors"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--html", type=Path, metavar="OUT", help="also write a page with charts and images")
    add_allow_code(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="config values, such as model.anchors.base_size=2"
    )


def run(args: argparse.Namespace) -> int:
    from detector.config.loader import load_config

    config = load_config(args.config, args.overrides, args.allow_code)
    check_arguments(args, config)

    from detector.analysis.anchors.report import as_json, as_text, cost, gallery, sections
    from detector.analysis.anchors.study import study
    from detector.reports.pages import write_page
    from detector.training.derived import derive

    config, derived = derive(config)
    for line in derived:
        print(line, file=sys.stderr)
    splits = open_splits(config, ["train", "val"] if args.suggest else ["train"])
    found = study(config, splits["train"])
    summary = cost(config, len(found.split.annotations.categories))
    suggestion = suggest(args, config, splits, found) if args.suggest else None
    if args.html:
        images = config.data.train.images
        drawings = gallery(found, Path(images)) if images and not config.data.tiles.size else []
        lead = f"{found.split.annotations.path}, at the input sizes of the config"
        write_page(args.html, f"Anchors of {args.config}", lead, sections(found, summary, suggestion, drawings))
    if args.json:
        print(json.dumps(as_json(args.config, found, summary, suggestion), ensure_ascii=False))
    else:
        print(as_text(sections(found, summary, suggestion)))
    if suggestion and args.write and suggestion.yaml:
        write_config(args.write, suggestion.yaml)
    return 0


def check_arguments(args: argparse.Namespace, config: Config) -> None:
    """Refuse contradictions before the data is read."""
    from detector.errors import ConfigError
    from detector.system.atomic import check_new
    from detector.tasks import get_task

    get_task(config)
    if config.task != "detection":
        raise ConfigError(f"{args.config}: task {config.task} has no anchors; give the config of a detector")
    if args.suggest and not config.model.matcher.has_thresholds:
        raise ConfigError(
            f"{args.config}: model.matcher.name {config.model.matcher.name} does not need anchors that fit the objects,"
            " so there is nothing to suggest; remove --suggest, or use max_iou"
        )
    if args.write and not args.suggest:
        raise ConfigError("command line: --write has no effect without --suggest; add it, or remove --write")
    if args.write:
        check_new(args.write)


def open_splits(config: Config, names: Sequence[str]) -> dict[str, Split]:
    """The annotations of the splits that the config has, without reading images."""
    from detector.analysis.anchors.search import Split
    from detector.data.detection import apply_box_policy, has_val, read_split, with_sizes
    from detector.data.tiles import list_tiles

    data = config.data
    splits: dict[str, Split] = {}
    categories = None
    for name in names:
        if name == "train" or has_val(data):
            annotations = read_split(data, name, categories, config.seed)
            if annotations.notice:
                print(annotations.notice, file=sys.stderr)
            annotations = with_sizes(annotations, annotations.images, data.exif, data.allow_outside)
            categories = annotations.categories
            checked = apply_box_policy(annotations, data.invalid_boxes)
            if data.tiles.size:  # the model sees those, in val too
                annotations = list_tiles(annotations, checked, data.tiles, config.seed).annotations
                checked = apply_box_policy(annotations, "clip")
            splits[name] = Split(annotations, checked, config.seed)
    return splits


def suggest(args: argparse.Namespace, config: Config, splits: dict[str, Split], found: Study) -> Suggestion:
    """Search on train, and measure on every split."""
    from detector.analysis.anchors.report import Suggestion
    from detector.analysis.anchors.search import options, search
    from detector.analysis.anchors.study import study
    from detector.config.loader import build_on

    model = config.model
    anchors = search(found.objects, model.anchors, model.matcher, model.fpn.levels, config.seed)
    before = {name: found if name == "train" else study(config, split) for name, split in splits.items()}
    after, text = before, ""
    if anchors != model.anchors:
        changed = config.model_copy(update={"model": model.model_copy(update={"anchors": anchors})})
        after = {name: study(changed, split) for name, split in splits.items()}
        shapes = {"base_size": anchors.base_size, "ratios": anchors.ratios, "scales": anchors.scales}
        # The config's values for single levels would override these in a file that builds on it.
        own = shapes | ({"levels": dict.fromkeys(model.anchors.levels, shapes)} if model.anchors.levels else {})
        folder = args.write.parent if args.write else Path()
        text = build_on(args.config, args.overrides, {"model": {"anchors": own}}, folder)
    compared = options(splits["train"], config, anchors, len(found.split.annotations.categories))
    return Suggestion(before, after, compared, text)


def write_config(path: Path, text: str) -> None:
    """Write the config, and check that it can be loaded."""
    from detector.config.loader import load_config
    from detector.system.atomic import atomic_write, make_folder

    make_folder(path.parent)
    with atomic_write(path) as file:
        file.write(text)
    load_config(path)
