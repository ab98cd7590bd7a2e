"""Make a checkpoint of this package from one of torchvision, Detectron2 or MMDetection, or torchvision's from ours.

tools/import_weights.py RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1 retinanet.pt
tools/import_weights.py model_final_5bd44e.pkl retinanet.pt --from detectron2 --config-out mine.yaml
tools/import_weights.py runs/x/best.pt retinanet_torchvision.pth --to torchvision
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detector.config.schema import Config

BASE = "retinanet_r50_fpn.yaml"  # the training recipe of --config-out
PACKAGES = ("torchvision", "detectron2", "mmdetection")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", help="a .pth, .pt, .pkl or .safetensors file, a URL, or a name of torchvision's weights"
    )
    parser.add_argument("output", type=Path, help="the file to write")
    parser.add_argument(
        "--from",
        dest="package",
        choices=PACKAGES,
        help="the source's package (default: recognised by the tensors' names)",
    )
    parser.add_argument("--to", choices=["torchvision"], help="write torchvision's state dict instead of a checkpoint")
    parser.add_argument("--config", help="a YAML file with what the tensors do not show, such as other anchors")
    parser.add_argument(
        "--config-out", type=Path, metavar="FILE.yaml", help="write a config that trains from the checkpoint"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="config values, such as model.backbone.stride_in_1x1=false"
    )


def run(args: argparse.Namespace) -> int:
    from detector.errors import ConfigError, near_path
    from detector.system.atomic import check_new

    for output in filter(None, (args.output, args.config_out)):
        check_new(output)
        if not output.parent.is_dir():
            raise ConfigError(f"{output.parent}: no such folder; create it first{near_path(output.parent)}")
    if args.to and (args.package or args.config or args.config_out or args.overrides):
        raise ConfigError("command line: --to has no --from, --config, --config-out and KEY=VALUE; remove them")
    print(_export(args.source, args.output) if args.to else _import(args))
    return 0


def _import(args: argparse.Namespace) -> str:
    from detector.checkpoints.checkpoint import checkpoint_categories, save_checkpoint
    from detector.checkpoints.opening import import_checkpoint
    from detector.config.loader import config_from_dict
    from detector.system.atomic import atomic_write

    imported = import_checkpoint(args.source, args.package, args.config, args.overrides)
    content = imported.content
    config = config_from_dict(content["config"], args.source)
    categories = checkpoint_categories(content)
    state = {"model": content["model"], "source": content["source"]}
    save_checkpoint(args.output, config, categories, state)
    outputs = [str(args.output)]
    if args.config_out:
        with atomic_write(args.config_out) as file:
            file.write(fitting_config(config, args.output, args.config_out))
        outputs.append(str(args.config_out))
    names = ", ".join(category.name for category in categories[:6]) + (", …" if len(categories) > 6 else "")
    return (
        f"{imported.report()}"
        f"{imported.source}, {config.model.backbones[0].name}, {len(categories)} classes ({names}):"
        f" {len(imported.used)} tensors used, {len(imported.ignored)} ignored\n" + "\n".join(outputs)
    )


def fitting_config(config: Config, checkpoint: Path, output: Path) -> str:
    """YAML of a config that starts from ``checkpoint`` and keeps the values its weights were trained with."""
    from detector.checkpoints.transfer import conventions
    from detector.config.loader import build_on, differences, load_config

    changes: dict[str, Any] = {"model": {"weights": str(checkpoint.resolve()), "backbone": {"weights": None}}}
    for dotted, _, value in differences(conventions(load_config(BASE)), conventions(config)):
        tree, keys = changes, dotted.split(".")
        for key in keys[:-1]:
            tree = tree.setdefault(key, {})
        tree[keys[-1]] = value
    command = f"detector train --config {output} data.train.annotations=train.json data.train.images=images/ ..."
    return f"# {command}\n{build_on(BASE, (), changes, output.parent)}"


def _export(source: str, output: Path) -> str:
    import torch

    from detector.checkpoints.foreign.torchvision import to_torchvision
    from detector.checkpoints.opening import open_checkpoint
    from detector.system.atomic import atomic_write

    state = to_torchvision(open_checkpoint(source), source)
    if output.suffix == ".safetensors":
        from safetensors.torch import save

        with atomic_write(output, "wb") as file:
            file.write(save({name: tensor.contiguous() for name, tensor in state.items()}))
    else:
        with atomic_write(output, "wb") as file:
            torch.save(state, file)
    rows = len(state["head.classification_head.cls_logits.bias"])
    anchors = len(state["head.regression_head.bbox_reg.bias"]) // 4
    return f"{len(state)} tensors; torchvision's num_classes is {rows // anchors}\n{output}"
