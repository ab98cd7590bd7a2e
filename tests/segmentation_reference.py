"""The reference for segmentation in docs/BENCHMARKS.md: segmentation_models_pytorch's FPN on camvid.

    pip install segmentation_models_pytorch
    python tests/segmentation_reference.py ../shared/data/camvid --lr 1e-3 --seed 0

The recipe is that of its own CamVid example: Dice loss, Adam, cosine, batches of 8, its augmentation.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

HEIGHT, WIDTH, CLASSES, IGNORED = 192, 256, 11, 11
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def augmentation(seed: int) -> A.Compose:
    """The example's, with crops of this size."""
    filled = {"border_mode": cv2.BORDER_CONSTANT, "fill": 0, "fill_mask": IGNORED}
    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.ShiftScaleRotate(scale_limit=0.5, rotate_limit=0, shift_limit=0.1, p=1, **filled),
            A.PadIfNeeded(min_height=HEIGHT, min_width=WIDTH, **filled),
            A.RandomCrop(height=HEIGHT, width=WIDTH),
            A.GaussNoise(p=0.2),
            A.Perspective(p=0.5, fill_mask=IGNORED),
            A.OneOf([A.CLAHE(p=1), A.RandomBrightnessContrast(p=1), A.RandomGamma(p=1)], p=0.9),
            A.OneOf([A.Sharpen(p=1), A.Blur(blur_limit=3, p=1), A.MotionBlur(blur_limit=3, p=1)], p=0.9),
            A.OneOf([A.RandomBrightnessContrast(p=1), A.HueSaturationValue(p=1)], p=0.9),
        ],
        seed=seed,
    )


class CamVid(Dataset):
    """Image [3, H, W], mask [H, W], and the mask as stored."""

    def __init__(self, root: Path, split: str, transform: A.Compose | None = None) -> None:
        self.images = sorted((root / "images" / split).iterdir())
        self.masks, self.transform = root / "masks" / split, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        file = self.images[index]
        image = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
        stored = cv2.imread(str(self.masks / f"{file.stem}.png"), cv2.IMREAD_UNCHANGED)
        image = cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        mask = cv2.resize(stored, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)
        if self.transform:
            out = self.transform(image=image, mask=mask)
            image, mask = out["image"], out["mask"]
        pixels = ((image.astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)
        return torch.from_numpy(pixels.copy()), torch.from_numpy(mask).long(), torch.from_numpy(stored).long()


def score(model: torch.nn.Module, data: CamVid) -> np.ndarray:
    """IoU of each class that occurs, at the masks' stored size."""
    confusion = np.zeros((CLASSES, CLASSES), np.int64)
    model.eval()
    with torch.inference_mode():
        for image, _, stored in DataLoader(data, 1):
            logits = torch.nn.functional.interpolate(model(image), size=stored.shape[1:], mode="bilinear")
            is_counted = stored != IGNORED
            pairs = stored[is_counted] * CLASSES + logits.argmax(dim=1)[is_counted]
            confusion += np.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    right, union = np.diag(confusion), confusion.sum(axis=0) + confusion.sum(axis=1) - np.diag(confusion)
    return right[union > 0] / union[union > 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=15)
    args = parser.parse_args()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(args.seed)
    model = smp.FPN("resnet18", encoder_weights=None, classes=CLASSES)
    loss_of = smp.losses.DiceLoss(smp.losses.MULTICLASS_MODE, from_logits=True, ignore_index=IGNORED)
    data = CamVid(args.data, "train", augmentation(args.seed))
    loader = DataLoader(data, 8, shuffle=True, num_workers=1, persistent_workers=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(loader), eta_min=1e-5)
    for epoch in range(1, args.epochs + 1):
        model.train()
        for image, mask, _ in loader:
            optimizer.zero_grad()
            loss = loss_of(model(image), mask)
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch} loss {loss.item():.3f}", flush=True)
    ious = score(model, CamVid(args.data, "val"))
    print(f"mIoU {ious.mean():.4f}", " ".join(f"{iou:.3f}" for iou in ious))


if __name__ == "__main__":
    main()
