"""The reference for ``classify_finetune.yaml``: a plain fine-tuning loop that uses nothing of this package.

A network of timm, a new linear layer on its pooled features, all layers trained at one rate: AdamW, PyTorch's
one-cycle schedule (of the momentum too), random crops and flips of torchvision. Prints top-1 of the last epoch.

    python -m detector.dev.benchmark.plain_finetuning --train trashnet/train --val trashnet/val --weights lite0.pth

Without ``--val`` every fourth image of ``--train`` is held back and scored instead.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=Path, required=True, help="a folder of images per class")
    parser.add_argument("--val", type=Path, help="the same; default: every fourth image of --train")
    parser.add_argument("--network", default="tf_efficientnet_lite0", help="a name of timm (default: %(default)s)")
    parser.add_argument("--weights", type=Path, required=True, help="its state dict, with the old classifier")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="loading processes (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)

    model = timm.create_model(args.network)
    model.load_state_dict(torch.load(args.weights, weights_only=True))
    pretrained = model.pretrained_cfg
    train, val = datasets(args.train, args.val, args.size, pretrained["mean"], pretrained["std"])
    model.reset_classifier(len(ImageFolder(args.train).classes))
    model.to(args.device)

    loader = DataLoader(train, args.batch, shuffle=True, drop_last=True, num_workers=args.workers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.epochs * len(loader), pct_start=0.1)
    loss_of = nn.CrossEntropyLoss()
    started = time.perf_counter()
    for epoch in range(args.epochs):
        model.train()
        for images, labels in loader:
            loss = loss_of(model(images.to(args.device)), labels.to(args.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch} loss {loss.item():.3f} {time.perf_counter() - started:.0f} s", flush=True)
    top1 = accuracy(model, DataLoader(val, 64), args.device)
    print(f"top-1 {top1:.4f} of {len(val)} images, rate {args.lr:g}, seed {args.seed}")


def datasets(
    train: Path, val: Path | None, size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Subset, Subset]:
    """Images for training, by random crops, and for validation, by the centre of the whole image."""
    ending = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    augmented = v2.Compose([v2.RandomResizedCrop(size, scale=(0.35, 1.0)), v2.RandomHorizontalFlip(), *ending])
    plain = v2.Compose([v2.Resize(size), v2.CenterCrop(size), *ending])
    images = ImageFolder(train, augmented)
    everything = range(len(images))
    if val:
        scored = ImageFolder(val, plain)
        return Subset(images, everything), Subset(scored, range(len(scored)))
    held = [index for index in everything if index % 4 == 3]
    kept = [index for index in everything if index % 4 != 3]
    return Subset(images, kept), Subset(ImageFolder(train, plain), held)


@torch.inference_mode()
def accuracy(model: nn.Module, loader: DataLoader, device: str) -> float:
    model.eval()
    hits = [model(images.to(device)).argmax(1).cpu() == labels for images, labels in loader]
    return torch.cat(hits).float().mean().item()


if __name__ == "__main__":
    main()
