"""All checks with their severity and remedy, and findings as data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from detector.data.names import ALLOW_OUTSIDE

Item = TypeVar("Item")
Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

EXAMPLES = 8  # kept of each finding


@dataclass(frozen=True)
class Check:
    """One kind of fault."""

    severity: Severity
    what: str
    remedy: str
    fixable: bool = False  # by --fix, as far as that needs no judgement


@dataclass(frozen=True)
class Example:
    """Where a fault is; what does not apply is empty."""

    file: str = ""  # as the annotations name it
    annotation: int | str | None = None  # its id
    box: tuple[float, float, float, float] | None = None  # xywh, as annotated
    detail: str = ""
    split: str = ""  # of the first file of a pair, which may be across splits
    other: str = ""  # the second file of a pair
    other_split: str = ""
    row: int | None = None  # index of the annotation


@dataclass(frozen=True)
class Finding:
    """One kind of fault in one split, or between both (``split`` is "train/val")."""

    check: str  # a key of CHECKS
    split: str
    count: int
    examples: Sequence[Example] = ()
    detail: str = ""

    @property
    def severity(self) -> Severity:
        return CHECKS[self.check].severity

    @property
    def what(self) -> str:
        return CHECKS[self.check].what

    @property
    def remedy(self) -> str:
        return CHECKS[self.check].remedy


def findings_of(
    check: str, split: str, items: Sequence[Item], example: Callable[[Item], Example], detail: str = ""
) -> Iterator[Finding]:
    """The finding of a check on ``items``, with the first as examples; nothing without items."""
    if len(items):
        yield Finding(check, split, len(items), [example(item) for item in items[:EXAMPLES]], detail)


def in_words(text: str) -> Example:
    """An example without a file or an annotation."""
    return Example(detail=text)


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, then in the order of CHECKS."""
    order = list(CHECKS)
    return sorted(findings, key=lambda one: (SEVERITIES.index(one.severity), order.index(one.check), one.split))


CHECKS: dict[str, Check] = {
    # --- files ---
    "file-missing": Check(
        "error",
        "listed images that do not exist",
        "check the image folder; restore the files, or remove the images and their annotations; --fix corrects names"
        " of files that exist there under another one",
        fixable=True,
    ),
    "file-outside": Check(
        "error",
        "images whose names lead out of the image folder",
        f"put them into the folder, or {ALLOW_OUTSIDE} if you trust the annotations; --fix corrects names of files that"
        " lie in the folder",
        fixable=True,
    ),
    "file-channels": Check(
        "error",
        "images whose number of channels is not the model's",
        "set model.in_channels, or convert them",
    ),
    "file-unreadable": Check("error", "files that are not images or cannot be read", "restore or remove them"),
    "file-damaged": Check("error", "images that are cut off or damaged", "copy or download them again, or remove them"),
    "size-differs": Check(
        "error",
        "images of another size than annotated: their boxes may lie on another image",
        "correct width and height, or restore the images that were annotated; --fix corrects where the boxes allow",
        fixable=True,
    ),
    "size-malformed": Check(
        "error",
        "images whose width and height are not positive integers",
        "correct them; --fix takes them from the files",
        fixable=True,
    ),
    "size-missing": Check(
        "note",
        "images without a width and height: those of their files are used",
        "nothing, if the files are as they were annotated; --fix writes them",
        fixable=True,
    ),
    "size-unclear": Check(
        "error",
        "images without a width and height whose files leave the frame of the boxes open",
        "add the width and height of the frame that the boxes were drawn on",
    ),
    "exif-ambiguous": Check(
        "warning",
        "images that EXIF turns or mirrors without a change of size: boxes may be drawn on either frame",
        "look at them; training uses the stored frame. data.exif=upright or stored says which frame the boxes are on",
    ),
    "exif-turned": Check(
        "note",
        "images that EXIF turns by 90°: the annotated width and height tell which frame the boxes are on",
        "nothing here; other tools may turn them, unless the pixels are stored upright and the tag removed",
    ),
    "file-extension": Check(
        "warning", "files whose format does not match their extension", "rename them, and their entries"
    ),
    "file-mode": Check(
        "note", "images whose mode is not the model's", "nothing, if that is intended: they are converted"
    ),
    "depth-range": Check(
        "warning",
        "16-bit images whose values use little of the range, or more than data.max_value",
        "set data.max_value to the value of white",
    ),
    "file-unlisted": Check(
        "note", "images in the folder that no annotation file lists", "annotate them, or leave them"
    ),
    "file-stray": Check(
        "error", "images outside the class folders", "move them into the folder of their class, or away"
    ),
    "folder-empty": Check("error", "class folders without images", "fill or remove them"),
    # --- entries and ids ---
    "list-missing": Check("error", "required lists that the file lacks", "add them; write an empty list as []"),
    "row-malformed": Check(
        "error",
        "rows, objects or files of the annotations that cannot be read",
        "correct them; --fix leaves them out",
        fixable=True,
    ),
    "read-otherwise": Check(
        "note",
        "kinds of values that are read although COCO specifies another form",
        "nothing here; --fix writes them as COCO specifies",
        fixable=True,
    ),
    "image-malformed": Check("error", "images without an id or a file name", "correct or remove them"),
    "image-id-duplicate": Check(
        "error", "images with a duplicate id: their annotations cannot be told apart", "give each image its own id"
    ),
    "image-listed-twice": Check(
        "warning", "files that are listed as several images", "keep one of them, with the annotations of all"
    ),
    "annotation-malformed": Check(
        "error", "annotations with fields that are missing or of the wrong type", "correct them"
    ),
    "annotation-id-duplicate": Check(
        "error",
        "annotations with a duplicate id: evaluation drops one of them",
        "give each its own id; --fix renumbers the later ones",
        fixable=True,
    ),
    "image-dangling": Check(
        "error",
        "annotations of an image that is not listed",
        "add the image, or remove them; --fix corrects ids that are all off by one, and removes others",
        fixable=True,
    ),
    "category-dangling": Check(
        "error",
        "annotations of a category that is not listed",
        "add the category, or remove them; --fix corrects ids that are all off by one, and removes others",
        fixable=True,
    ),
    "category-malformed": Check("error", "categories without an id or a name", "correct them"),
    "category-id-duplicate": Check("error", "duplicate category ids", "give each category its own id"),
    "category-name-duplicate": Check(
        "error",
        "classes with the same name that all have annotations",
        "rename one, or move its annotations to the other",
    ),
    "category-name-similar": Check(
        "warning",
        "class names that differ only in case, spaces or punctuation",
        "merge them, if they are the same class",
    ),
    "category-id-gap": Check(
        "note", "gaps in the category ids", "nothing here; other tools may count the gaps as classes"
    ),
    "csv-row": Check("error", "rows of the CSV file that cannot be used", "correct them: path,label"),
    # --- boxes ---
    "box-not-finite": Check(
        "error",
        "boxes that are not four finite numbers",
        "correct or remove them; --fix takes them from the segmentation, or removes them",
        fixable=True,
    ),
    "box-no-area": Check(
        "error",
        "boxes without area",
        "correct or remove them; --fix takes them from the segmentation, or removes them; data.invalid_boxes=drop"
        " drops them",
        fixable=True,
    ),
    "area-odd": Check(
        "warning",
        "areas that are 0 or larger than their box: AP of small, medium and large objects depends on them",
        "correct them; --fix recomputes them from the mask, or the box",
        fixable=True,
    ),
    "box-outside": Check(
        "error",
        "boxes that extend more than a pixel outside their image",
        "correct them; --fix clips them to the image and removes those wholly outside, as data.invalid_boxes=clip does",
        fixable=True,
    ),
    "box-duplicate": Check(
        "warning",
        "duplicate boxes: same image and class, IoU over 0.95",
        "remove one of each pair; --fix does if both are equal",
        fixable=True,
    ),
    "box-tiny": Check(
        "warning", "boxes with a side under 2 pixels: probably mistakes", "look at them; remove the mistakes"
    ),
    "box-whole-image": Check(
        "note", "boxes that cover 98 % of their image or more", "look at them: close-ups, or mistakes?"
    ),
    "box-extreme-ratio": Check(
        "note",
        "boxes more than 10 times as long as wide: the usual anchors do not cover them",
        "look at them; for long objects add ratios to model.anchors.ratios",
    ),
    # --- masks ---
    "mask-missing": Check("error", "images without a mask", "add it, remove the image, or set data.masks.endings"),
    "mask-unreadable": Check("error", "masks that cannot be read", "restore them, or correct the segmentations"),
    "mask-size": Check("error", "masks of another size than their image", "restore the one that was resized"),
    "mask-index": Check(
        "error",
        "masks with an index that is no class",
        "name it in data.classes, ignore it (data.masks.ignore_index), or map it (data.masks.label_map)",
    ),
    "mask-colors": Check(
        "error", "masks in RGB", "convert them to indices, or name each class's colour (data.masks.colors)"
    ),
    "class-small": Check(
        "note",
        "classes with under a thousandth of the pixels",
        "nothing, if they are so small; data.class_weights and model.loss.dice_weight help to learn them",
    ),
    # --- sets ---
    "leak-identical": Check(
        "error", "val images that are train images, byte for byte", "remove them from one of the splits"
    ),
    "leak-near": Check("error", "val images that look like a train image", "look at them; keep each pair in one split"),
    "label-conflict": Check(
        "error", "the same image under different classes", "look at the pairs; keep the right class"
    ),
    "images-identical": Check("warning", "images that duplicate another, byte for byte", "keep one of each"),
    "images-near": Check(
        "warning", "images that look like another of the split", "look at them; they count twice in training"
    ),
    "classes-differ": Check(
        "error",
        "classes that only one split has, or that have another id in it",
        "give both splits the same categories",
    ),
    "objects-none": Check("error", "no object to train on", "annotate some; check that this is the right file"),
    "class-unknown": Check(
        "error", "classes that data.classes does not have", "correct their names, or add them to data.classes"
    ),
    "class-unlearnt": Check(
        "error", "classes without an image to train on", "add some, or remove them from data.classes"
    ),
    "class-empty": Check("warning", "classes without an object", "add examples, or remove the class"),
    "class-rare": Check(
        "warning", "classes with under 10 examples to train on", "add examples; such classes are hardly learned"
    ),
    "class-imbalance": Check(
        "note", "classes with under a hundredth of the most frequent one's examples", "add examples of the rare ones"
    ),
    "objects-small": Check(
        "warning",
        "splits in which over a quarter of the objects are under 16 pixels at the input size",
        "use data.tiles, a larger data.resize, level P2 in model.fpn.levels, or smaller anchors",
    ),
    "images-crowded": Check(
        "note",
        "images with more objects than a prediction may have",
        "raise model.predict.max_detections, or they cannot all be detected",
    ),
    "images-empty": Check(
        "note", "images without objects", "nothing, if there is none to see: they are good negatives"
    ),
    "images-ignored": Check(
        "note",
        "images with nothing but ignore regions: only what is outside them is background",
        "nothing, if all objects are in the regions",
    ),
    "crowd": Check(
        "note", "ignore regions (iscrowd or ignore is 1), which training ignores and evaluation excuses", "nothing"
    ),
    "split-impossible": Check(
        "error", "the split that data.val_share asks for is impossible", "add images, or change it"
    ),
}
