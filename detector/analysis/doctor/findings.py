"""All that can be found, how bad it is and what to do about it, as data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

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
    """Where a fault stands; what does not apply is empty."""

    file: str = ""  # as the annotations name it
    annotation: int | str | None = None  # its id
    box: tuple[float, float, float, float] | None = None  # xywh, as annotated
    detail: str = ""
    split: str = ""  # of a pair, which may lie across
    other: str = ""  # the second file of a pair
    other_split: str = ""
    row: int | None = None  # place among the annotations


@dataclass(frozen=True)
class Finding:
    """One kind of fault in one split, or (``split`` is "train/val") between both."""

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


def found(
    check: str, split: str, items: Sequence[Item], example: Callable[[Item], Example], detail: str = ""
) -> Iterator[Finding]:
    """The finding that a check has of ``items``, the first of them as examples; none where there are none."""
    if len(items):
        yield Finding(check, split, len(items), [example(item) for item in items[:EXAMPLES]], detail)


def in_words(text: str) -> Example:
    """An example that stands in no file and no annotation."""
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
        " of files that lie there by another one",
        fixable=True,
    ),
    "file-outside": Check(
        "error",
        "images whose names lead out of the image folder",
        "put them into the folder, or set data.allow_outside=true if you trust the annotations; --fix corrects names"
        " of files that lie in the folder",
        fixable=True,
    ),
    "file-channels": Check(
        "error",
        "images with another number of channels than the model reads",
        "set model.in_channels, or convert them",
    ),
    "file-unreadable": Check("error", "files that are no image or cannot be read", "restore or remove them"),
    "file-damaged": Check("error", "images that are cut off or damaged", "copy or download them again, or remove them"),
    "size-differs": Check(
        "error",
        "images of another size than annotated: their boxes may lie on another image",
        "correct width and height, or restore the images that were annotated; --fix corrects where the boxes allow",
        fixable=True,
    ),
    "size-malformed": Check(
        "error",
        "images whose width and height are no whole pixels",
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
        "images without a width and height whose files do not tell the frame of the boxes",
        "write the width and height of the frame that the boxes were drawn on",
    ),
    "exif-ambiguous": Check(
        "warning",
        "images that EXIF turns or mirrors without a change of size: boxes may be drawn on either frame",
        "look at them; training uses the stored frame. data.exif=upright or stored says which frame the boxes are on",
    ),
    "exif-turned": Check(
        "note",
        "images that EXIF turns by a quarter: the annotated width and height say which frame the boxes are on",
        "nothing here; other tools may turn them, unless the pixels are stored upright and the tag removed",
    ),
    "file-extension": Check(
        "warning", "files whose content is another format than their name says", "rename them, and their entries"
    ),
    "file-mode": Check(
        "note", "images of another mode than the model reads", "nothing, if that is meant: they are converted"
    ),
    "depth-range": Check(
        "warning",
        "16-bit images whose values use little of the range, or more than data.max_value",
        "set data.max_value to the value that is to count as white",
    ),
    "file-unlisted": Check(
        "note", "images in the folder that no annotation file lists", "annotate them, or leave them"
    ),
    "file-stray": Check(
        "error", "images that lie outside the class folders", "move them into the folder of their class, or away"
    ),
    "folder-empty": Check("error", "class folders without images", "fill or remove them"),
    # --- entries and ids ---
    "list-missing": Check(
        "error", "lists that COCO annotations need and the file lacks", "add them; an empty list is written []"
    ),
    "read-otherwise": Check(
        "note",
        "values that are read although they are written otherwise than COCO has them",
        "nothing here; --fix writes numbers as numbers, and ids that are written in two ways in one",
        fixable=True,
    ),
    "image-malformed": Check("error", "images without an id or a file name", "correct or remove them"),
    "image-id-duplicate": Check(
        "error", "images whose id is duplicated: annotations cannot be told apart", "give each image an id of its own"
    ),
    "image-listed-twice": Check(
        "warning", "files that are listed as several images", "keep one of them, with the annotations of all"
    ),
    "annotation-malformed": Check("error", "annotations with fields missing or of a wrong type", "correct them"),
    "annotation-id-duplicate": Check(
        "error",
        "annotations whose id is duplicated: evaluation drops one of them",
        "give each an id of its own; --fix renumbers the later ones",
        fixable=True,
    ),
    "image-dangling": Check(
        "error",
        "annotations of an image that is not listed",
        "add the image, or remove them; --fix joins ids that are all off by one, and removes others",
        fixable=True,
    ),
    "category-dangling": Check(
        "error",
        "annotations of a category that is not listed",
        "add the category, or remove them; --fix joins ids that are all off by one, and removes others",
        fixable=True,
    ),
    "category-malformed": Check("error", "categories without an id or a name", "correct them"),
    "category-id-duplicate": Check("error", "category ids that are duplicated", "give each category an id of its own"),
    "category-name-duplicate": Check(
        "error",
        "classes with the same name, each with annotations: one name would be two classes",
        "rename one, or give the annotations of one the id of the other",
    ),
    "category-name-similar": Check(
        "warning",
        "class names that are the same but for case, spaces or signs",
        "merge them into one class, if they are one",
    ),
    "category-id-gap": Check("note", "gaps in the category ids", "nothing here; other tools may count them as classes"),
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
        " leaves them out",
        fixable=True,
    ),
    "area-odd": Check(
        "warning",
        "areas that are 0 or larger than their box: AP of small, medium and large objects goes by them",
        "correct them; --fix recomputes them from the mask, or the box",
        fixable=True,
    ),
    "box-outside": Check(
        "error",
        "boxes that reach more than a pixel outside their image",
        "correct them; --fix cuts them to the image and removes those wholly outside, data.invalid_boxes=clip too",
        fixable=True,
    ),
    "box-duplicate": Check(
        "warning",
        "boxes that are duplicated: same image and class, IoU over 0.95",
        "remove one of each pair; --fix does where both are equal",
        fixable=True,
    ),
    "box-tiny": Check(
        "warning", "boxes with a side under 2 pixels: points or slips, hardly objects", "look at them; remove the slips"
    ),
    "box-whole-image": Check(
        "note", "boxes that cover 98 % of their image or more", "look at them: objects seen close, or slips?"
    ),
    "box-extreme-ratio": Check(
        "note",
        "boxes more than 10 times as long as wide: no usual anchor covers them",
        "look at them; for long objects add ratios to model.anchors.ratios",
    ),
    # --- sets ---
    "leak-identical": Check(
        "error", "val images that are train images, byte for byte", "remove them from one of the splits"
    ),
    "leak-near": Check("error", "val images that look like a train image", "look at them; keep each pair in one split"),
    "label-conflict": Check(
        "error", "the same image under different classes", "look at the pairs; keep the right class"
    ),
    "images-identical": Check("warning", "images that repeat another, byte for byte", "keep one of each"),
    "images-near": Check(
        "warning", "images that look like another of the split", "look at them; they count twice in training"
    ),
    "classes-differ": Check(
        "error", "classes that only one split knows or numbers otherwise", "give both splits the same categories"
    ),
    "objects-none": Check(
        "error", "no object to train on", "annotate some; check that this is the file that was meant"
    ),
    "class-unknown": Check(
        "error", "classes that data.classes does not have", "correct their names, or add them to data.classes"
    ),
    "class-unlearnt": Check(
        "error", "classes without an image to train on", "add some, or remove them from data.classes"
    ),
    "class-empty": Check("warning", "classes without an object", "add examples, or remove the class"),
    "class-rare": Check(
        "warning", "classes with under 10 objects to train on", "add examples, or expect nothing of these classes"
    ),
    "class-imbalance": Check(
        "note", "classes with under a hundredth of the most frequent one's objects", "add examples of the rare ones"
    ),
    "objects-small": Check(
        "warning",
        "splits in which over a quarter of the objects is under 16 pixels at the input size",
        "larger data.resize, level P2 in model.fpn.levels, or smaller anchors",
    ),
    "images-crowded": Check(
        "note",
        "images with more objects than a prediction may have",
        "raise model.predict.max_detections, or they cannot all be found",
    ),
    "images-empty": Check(
        "note", "images without objects", "nothing, if there is none to be seen: they are good negatives"
    ),
    "images-ignored": Check(
        "note",
        "images with nothing but ignore regions: only what lies outside the regions is background",
        "nothing, if all objects are in the regions",
    ),
    "crowd": Check(
        "note", "ignore regions (iscrowd or ignore is 1), which training ignores and evaluation excuses", "nothing"
    ),
    "split-impossible": Check("error", "data.val_share cannot be held back", "add images, or change the share"),
}
