"""The whole configuration: one YAML = one experiment.

Sections are nested frozen models, key for key; all defaults are here. ``detector.config.loader`` reads them from YAML.
Neither module imports torch.
"""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from detector.config.tasks import LARGEST_TILE, TASKS
from detector.errors import one_of

Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, lt=2**31)]

MOST_CLASSES = 254  # of segmentation: masks have 8 bits, and two values that are no class


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Python's bool is an int, and pydantic takes it for one: epochs: yes would be one epoch.
        if _has_bool_as_number(value, cls.model_fields[info.field_name or ""].annotation):
            raise ValueError(f"must be a number; it is {str(value).lower()}")
        return value


def _has_bool_as_number(value: Any, annotation: Any) -> bool:
    """Whether a bool stands where a type such as ``list[Count] | None`` has a number."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Annotated, UnionType, Union):
        return any(_has_bool_as_number(value, one) for one in inner)
    if origin is list and isinstance(value, list):
        return any(_has_bool_as_number(one, inner[0]) for one in value)
    if origin is dict and isinstance(value, dict):
        return any(_has_bool_as_number(one, inner[1]) for one in value.values())
    return isinstance(value, bool) and annotation in (int, float)


# --- data -------------------------------------------------------------------------------------------------------------


Format = Literal["auto", "coco", "yolo", "voc", "csv", "folder"]


def _as_split(value: Any) -> Any:
    """A path is a section with ``annotations``, and a list is several sets."""
    if isinstance(value, str):
        return {"annotations": value}
    return {"sets": [_as_split(one) for one in value]} if isinstance(value, list) else value


class SplitConfig(Section):
    """The files of one data set, as a section or only the path of its annotations; or a list of several sets."""

    # Detection: a COCO JSON file; YOLO's data.yaml, a folder of images or a list of them; Pascal VOC's folder or a file
    # in its ImageSets; a CSV file of boxes. Classification: a CSV file of paths and labels, or null for one folder per
    # class. Segmentation: a folder of masks named as the images, a CSV file of paths of images and masks, a list in
    # VOC's ImageSets/Segmentation, or COCO JSON, whose polygons and RLE are drawn.
    annotations: str | None = None
    # The folder that file names are relative to, or that holds one folder per class; null: where the format has it.
    images: str | None = None
    format: Format | None = None  # null: data.format
    part: Literal["train", "val", "test"] | None = None  # of what holds several; null: as data.train or data.val says
    # Of several sets to train on, relative to each other: an epoch has each image of the set with the smallest weight
    # once, and each of a set with twice that weight twice. With 1.5 times, half come twice, others in every epoch.
    weight: Positive = 1.0
    sets: list[SplitConfig] = []

    @model_validator(mode="after")
    def _one_or_several(self) -> SplitConfig:
        if self.sets and self.model_copy(update={"sets": []}) != SplitConfig():
            raise ValueError("sets: each has its own annotations and images; remove those beside the list")
        if any(own.sets for own in self.sets):
            raise ValueError("sets: a list cannot hold a list; write all sets in one")
        return self

    def of_part(self, part: str) -> SplitConfig:
        """The same with this part, where none is given."""
        sets = [own.of_part(part) for own in self.sets]
        return self.model_copy(update={"sets": sets} if sets else {"part": self.part or part})

    @property
    def each(self) -> list[SplitConfig]:
        """The sets, or this one."""
        return self.sets or [self]


class ResizeConfig(Section):
    """Short side to ``short``, unless the long side would pass ``long`` (Faster R-CNN's rule)."""

    # With several, one is drawn per training image; evaluation and inference use the last.
    short: Annotated[list[Count], Field(min_length=1)] = [800]
    long: Count = 1333
    # Height and width that every image is resized to, whatever its ratio, instead of ``short`` and ``long``.
    fixed: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None
    rounding: Literal["nearest", "down"] = "nearest"  # of the sides to whole pixels; torchvision rounds down
    interpolation: Literal["area", "bilinear"] = "area"  # when shrinking; area does not alias


class AugmentConfig(Section):
    """For training only; each augmentation is a pure function of (seed, epoch, index)."""

    horizontal_flip: Probability = 0.5
    vertical_flip: Probability = 0.0  # for images without an up, such as of cells and from satellites
    rotate90: Probability = 0.0  # probability of a turn by 90, 180 or 270 degrees, for such images too
    photometric: Probability = 0.0  # probability of brightness and contrast jitter, of saturation and hue in RGB
    # Such as [0.5, 2.0]; over 1 crops.
    scale_jitter: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = None
    # Height and width of every training image: scaled to fit in, times scale_jitter, then cropped or put on gray at
    # random. Large-scale jitter (Ghiasi et al. 2021, section 3) is scale_jitter [0.1, 2.0] on [1024, 1024].
    canvas: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None
    min_visibility: Probability = 0.25  # boxes of which a crop keeps a smaller fraction become ignore regions
    mosaic: Probability = 0.0  # probability of four images around a point (Bochkovskiy et al. 2020, section 3.3)
    # Probability that objects of another image are pasted, cut out by their boxes; in segmentation, half of its classes
    # in their places (ClassMix, Olsson et al. 2021).
    copy_paste: Probability = 0.0
    # Mix two images by fractions drawn from Beta(α, α). The value is α, 0 = off; if both are on, each gets half of the
    # images. In detection the boxes of both count in full, so the fractions should be near a half: α = 8 or more.
    mixup: Annotated[float, Field(ge=0)] = (
        0.0  # blended (Zhang et al. 2018); not in segmentation: a pixel has one class
    )
    cutmix: Annotated[float, Field(ge=0)] = 0.0  # a window of the other image (Yun et al. 2019)
    mix_share: Fraction = 1.0  # fraction of the images that mixup and cutmix change
    close_out: Annotated[float, Field(ge=0, lt=1)] = 0.0  # last fraction of the epochs in which no images are mixed
    # albumentations' transforms, applied in this order at the input size, after flips and colours: the name and
    # arguments of each, such as {name: GaussNoise, p: 0.2}. Boxes follow.
    transforms: list[dict[str, JsonValue]] = []
    # Segmentation: crops are drawn again, up to ten times, while one class has more than this fraction of their pixels.
    max_class_share: Fraction = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> AugmentConfig:
        if self.scale_jitter and self.scale_jitter[0] > self.scale_jitter[1]:
            raise ValueError("scale_jitter: the lower bound comes first, as in [0.5, 2.0]")
        if not all(isinstance(transform.get("name"), str) for transform in self.transforms):
            raise ValueError("transforms: each needs a name, as in {name: GaussNoise, p: 0.2}")
        return self


class CropConfig(Section):
    """Classification: every image becomes ``size`` × ``size``."""

    size: Count = 224
    scale: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = [0.08, 1.0]  # of the area: training crops
    ratio: Annotated[list[Positive], Field(min_length=2, max_length=2)] = [
        3 / 4,
        4 / 3,
    ]  # width / height of training crops
    eval_share: Fraction = 0.875  # fraction of the short side: the central square for evaluation and inference

    @model_validator(mode="after")
    def _ordered(self) -> CropConfig:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if low > high:
                raise ValueError(f"{name}: the lower bound comes first; it is [{low}, {high}]")
        return self


class TilesConfig(Section):
    """Large images are seen in overlapping squares, each as an image of its own, which ``data.resize`` applies to."""

    # Of a tile's sides, in pixels of the file; null: images are seen whole.
    size: Annotated[int, Field(ge=1, le=LARGEST_TILE)] | None = None
    # Fraction of a tile that its neighbours see too, at least; as large as the largest object.
    overlap: Annotated[float, Field(ge=0, le=0.9)] = 0.2
    full_image: bool = False  # detection: predict the whole image too, shrunk, for objects larger than the overlap
    # What model.predict.nms_threshold applies to where the boxes of tiles are merged: ios is the intersection over the
    # smaller box, which also removes parts of objects, and objects that lie in others of their class.
    merge: Literal["iou", "ios"] = "iou"
    # Training: an object that a tile shows less of than the first fraction is background there, less than the second
    # an ignore region.
    min_visible: Annotated[list[Probability], Field(min_length=2, max_length=2)] = [0.1, 0.4]
    negatives: Probability = 0.25  # training: fraction of the tiles without objects in an epoch; others in each

    @model_validator(mode="after")
    def _ordered(self) -> TilesConfig:
        if self.min_visible[0] > self.min_visible[1]:
            raise ValueError(f"min_visible: the lower fraction comes first; it is {self.min_visible}")
        return self


class MaskConfig(Section):
    """Segmentation: how the indices of mask files become classes, which ``data.classes`` names in their order."""

    ignore_index: Annotated[int, Field(ge=0, lt=2**16)] | None = 255  # pixels of which nothing is known
    reduce_zero_label: bool = False  # 0 is ignored too, and 1 is the first class (ADE20K)
    # The class of each index, from 0, as in {7: 0, 8: 1} (Cityscapes); all other indices are ignored.
    label_map: dict[Annotated[int, Field(ge=0, lt=2**16)], Annotated[int, Field(ge=0, lt=MOST_CLASSES)]] = {}
    # For masks in RGB: the colour of each class, as in {road: [128, 64, 128]}; other colours are ignored.
    colors: dict[str, Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)]] = {}
    # What the names of images and of masks end with before the suffix, as in [_leftImg8bit, _gtFine_labelIds].
    endings: Annotated[list[str], Field(min_length=2, max_length=2)] = ["", ""]
    background: str | None = None  # COCO: the class of pixels outside all objects; null: ignored

    @model_validator(mode="after")
    def _one_way(self) -> MaskConfig:
        if self.reduce_zero_label and self.label_map:
            raise ValueError("label_map: gives the class of each index; remove reduce_zero_label")
        return self


def _as_list(value: Any) -> Any:
    """A mapping of merged classes as a list of them."""
    return [{name: members} for name, members in value.items()] if isinstance(value, dict) else value


class DataConfig(Section):
    train: Annotated[SplitConfig, BeforeValidator(_as_split)] = SplitConfig()
    # Not set: what the annotations of train name as val. null without val_share: no evaluation, last.pt is the result.
    val: Annotated[SplitConfig | None, BeforeValidator(_as_split)] = SplitConfig()
    format: Format = "auto"  # of the annotations; auto: by what they hold
    # Pascal VOC: the first pixel is 1; auto: unless a corner is under 1.
    one_based: Literal["auto", True, False] = "auto"
    invalid_boxes: Literal["error", "clip", "drop"] = "error"
    # Allow file names that lead out of the images' folder, absolute or by "..". Links are followed anyway.
    allow_outside: bool = False
    # Where data that train or val names by URL (s3://…) is copied to; null: detector in XDG_CACHE_HOME or ~/.cache.
    cache: str | None = None
    # Orientation of images and boxes: upright applies EXIF's rotation, stored does not. auto takes the one that has the
    # annotated width and height (stored if both do), and upright without annotations.
    exif: Literal["auto", "stored", "upright"] = "auto"
    # For 16-bit images: the value that corresponds to 255 in 8 bits; null: 65535. 12-bit cameras have 4095.
    max_value: Annotated[int, Field(ge=1, le=65535)] | None = None
    # An image that training cannot read: stop, or replace it by another one and list it in the run's skipped.txt, until
    # more than max_bad_share of an epoch's images are broken. Evaluation always stops: its score needs all images.
    on_bad_image: Literal["error", "skip"] = "error"
    max_bad_share: Fraction = 0.01
    val_share: Annotated[float, Field(gt=0, lt=1)] | None = None  # of data.train, held back as data.val, by seed
    # null: those in data.train, by name. Else these, in this order; boxes of others are dropped. A mapping merges:
    # [person, {vehicle: [car, bus]}] (detection).
    classes: Annotated[list[str | dict[str, list[str]]], Field(min_length=1), BeforeValidator(_as_list)] | None = None
    masks: MaskConfig = MaskConfig()
    # null: all equal; balanced: inversely proportional to the number of images, or in segmentation of pixels; or a
    # weight per class, 1 for others.
    class_weights: Literal["balanced"] | dict[str, Positive] | None = None
    resize: ResizeConfig = ResizeConfig()
    tiles: TilesConfig = TilesConfig()
    crop: CropConfig = CropConfig()
    augment: AugmentConfig = AugmentConfig()
    # Images of rare classes come more often: sqrt(this / f) times for a class in a fraction f < this of the images
    # (Gupta et al. 2019: LVIS, 0.001). An epoch keeps its length, so the others come less often. null: all once.
    repeat_threshold: Fraction | None = None
    group_by_aspect: bool = True  # batches of either portrait or landscape images, which need little padding
    workers: Annotated[int, Field(ge=0, le=1024)] = 2  # loading processes per rank

    @property
    def has_val(self) -> bool:
        """Whether there is data to evaluate on."""
        return self.val is not None or self.val_share is not None

    @property
    def class_members(self) -> dict[str, list[str]]:
        """The classes of ``classes``, each with those of the annotations that it is made of."""
        named = ({one: [one]} if isinstance(one, str) else one for one in self.classes or ())
        return {name: members for one in named for name, members in one.items()}

    @model_validator(mode="after")
    def _each_class_once(self) -> DataConfig:
        names = [name for one in self.classes or [] for name in ([one] if isinstance(one, str) else one)]
        members = [member for own in self.class_members.values() for member in own]
        if duplicates := [name for used in (names, members) for name in used if used.count(name) > 1]:
            raise ValueError(f"classes: {duplicates[0]!r} is duplicated; keep one")
        return self


# --- model ------------------------------------------------------------------------------------------------------------


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class BackboneConfig(Section):
    name: str = "resnet50"  # a key of detector.models.backbones.BACKBONES, timm:NAME, or package.module:name
    weights: str | None = None  # torchvision's name (IMAGENET1K_V1), a path, a URL; null = random
    norm: Literal["bn", "frozen_bn", "sync_bn"] = "bn"  # what the network's batch norms become
    freeze_at: Literal[0, 2, 3, 4, 5] = 0  # freeze the stem and the stages up to this level; 2 = stem and C2
    norm_eps: Annotated[float, Field(ge=0)] | None = None  # of batch norms; null: the network's own
    stride_in_1x1: bool = False  # ResNet: blocks have their stride in the 1×1 convolution, as Microsoft's, not the 3×3


class PyramidConfig(Section):
    """Several networks side by side instead of ``model.backbone``, each with its own FPN on the same images."""

    # Each is a network's name (with random weights) or a section such as model.backbone.
    branches: list[Annotated[BackboneConfig, BeforeValidator(_named)]] = []
    fuse: Literal["sum", "mean", "concat"] = "sum"  # per level; concat: then a 1×1 convolution to fpn.channels

    @model_validator(mode="after")
    def _several(self) -> PyramidConfig:
        if len(self.branches) == 1:
            raise ValueError("branches: there is only one; a single network is model.backbone")
        if not self.branches and self.fuse != "sum":
            raise ValueError(f"fuse: {self.fuse} has no effect without branches; remove it, or name some")
        return self


class FPNConfig(Section):
    levels: Annotated[list[Annotated[int, Field(ge=2, le=7)]], Field(min_length=1)] = [3, 4, 5, 6, 7]
    channels: Count = 256
    p6_from: Literal["c5", "p5"] = "c5"
    relu_before_p7: bool = True
    norm: Literal["none", "bn", "gn"] = "none"  # of lateral and output convolutions
    activation: Literal["none", "relu", "silu"] = "none"  # of lateral and output convolutions
    upsample: Literal["nearest", "bilinear", "deconv"] = "nearest"
    output_conv: bool = True  # a 3×3 convolution after merging, against aliasing from upsampling

    @model_validator(mode="after")
    def _contiguous(self) -> FPNConfig:
        if self.levels != list(range(self.levels[0], self.levels[-1] + 1)) or self.levels[0] > 5:
            raise ValueError(f"levels: {self.levels} must be contiguous and start at 2 to 5, as in [3, 4, 5, 6, 7]")
        return self


class AnchorShapes(Section):
    """What differs in one level's anchors."""

    base_size: Positive | None = None
    ratios: Annotated[list[Positive], Field(min_length=1)] | None = None
    scales: Annotated[list[Positive], Field(min_length=1)] | None = None


class LevelAnchors(Section):
    base_size: Positive  # in pixels
    ratios: list[Positive]
    scales: list[Positive]


class AnchorConfig(Section):
    """An anchor's area is (base_size · scale)²; a ratio is height / width (RetinaNet, section 4)."""

    base_size: Positive = 4.0  # in strides: level l has 4 · 2^l pixels
    ratios: Annotated[list[Positive], Field(min_length=1)] = [0.5, 1.0, 2.0]
    scales: Annotated[list[Positive], Field(min_length=1)] = [1.0, 2 ** (1 / 3), 2 ** (2 / 3)]
    offset: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the centres from the cells' corners, in strides
    rounded: bool = False  # round the anchors of a cell to whole pixels, as torchvision does
    # exact: level l has stride 2^l. from_size, as in torchvision: the padded image's side // the level's, which is less
    # where P6 and P7 were rounded up.
    strides: Literal["exact", "from_size"] = "exact"
    levels: dict[Annotated[int, Field(ge=2, le=7)], AnchorShapes] = {}  # overrides by level

    @model_validator(mode="after")
    def _same_count(self) -> AnchorConfig:
        for level in self.levels:
            shapes = self.at_level(level)
            count = len(shapes.ratios) * len(shapes.scales)
            if count != self.per_cell:
                raise ValueError(
                    f"levels.{level}: {count} anchors per cell where the others have {self.per_cell};"
                    " the head is shared, so every level needs the same number"
                )
        return self

    @property
    def per_cell(self) -> int:
        return len(self.ratios) * len(self.scales)

    def at_level(self, level: int) -> LevelAnchors:
        own = self.levels.get(level, AnchorShapes())
        return LevelAnchors(
            base_size=(own.base_size or self.base_size) * 2**level,
            ratios=own.ratios or self.ratios,
            scales=own.scales or self.scales,
        )


class HeadConfig(Section):
    name: str = "retina"  # a key of detector.models.heads.HEADS, or package.module:name
    # retina
    num_convs: Annotated[int, Field(ge=0, le=100)] = 4
    channels: Count | None = None  # null: as the pyramid; in semantic 128
    norm: Literal["none", "gn"] = "none"
    norm_bias: bool = False  # convolutions before a norm have a bias too, as in Detectron2
    prior: Annotated[float, Field(gt=0, lt=1)] = 0.01  # initial score of every class (RetinaNet, section 4.1)
    level_scales: bool = False  # multiply the box output by a learnable number per level
    # A factor of the class scores that says how good the box is. centerness, iou: a branch of the box subnet learns it
    # (ATSS). distribution: computed from how sharp the distributions of box_coder are (GFLv2).
    quality: Literal["none", "centerness", "iou", "distribution"] = "none"
    # pooled
    pool: Literal["avg", "max", "gem"] = "avg"  # each level to one vector; gem: generalised mean
    fuse: Literal["mean", "concat", "learned"] = "concat"  # the levels' vectors; learned: a weighted mean
    hidden: list[Count] = []  # widths of fully connected layers before the last one
    dropout: Annotated[float, Field(ge=0, lt=1)] = (
        0.0  # before every fully connected layer; in semantic before the last
    )
    # semantic: convolutions on the finest level. A coarser one has as many, or one per doubling of its size if that is
    # more (Panoptic FPN: 1, so 1, 1, 2, 3 on P2 to P5).
    blocks: Count = 1

    @model_validator(mode="after")
    def _norm_for_the_bias(self) -> HeadConfig:
        if self.norm_bias and self.norm == "none":
            raise ValueError("norm_bias: convolutions without a norm always have a bias; remove it, or use norm: gn")
        return self


class MatcherConfig(Section):
    name: str = "max_iou"  # a key of detector.ops.assignment.ASSIGNERS
    # max_iou: IoUs of matches and of background, and whether every object keeps its nearest anchors
    positive: Annotated[float, Field(gt=0, le=1)] = 0.5
    negative: Probability = 0.4
    low_quality: bool = True
    topk: Count = 9  # atss: candidates per object and level
    candidates: Count = 13  # task_aligned: per object
    score_power: Annotated[float, Field(ge=0)] = 1.0  # task_aligned: α
    iou_power: Annotated[float, Field(ge=0)] = 6.0  # task_aligned: β
    # Fraction of the run in which assigners get no predictions, which mean little then; task_aligned is atss so long.
    warmup: Probability = 1 / 3
    ignore_cover: Probability = 0.5  # anchors with more than this fraction in a crowd region are ignored

    @model_validator(mode="after")
    def _ordered(self) -> MatcherConfig:
        if self.negative > self.positive:
            raise ValueError(f"negative: {self.negative} must not be greater than positive: {self.positive}")
        return self

    @property
    def has_thresholds(self) -> bool:
        """Whether an anchor's own IoU decides, so that it matters which anchors there are."""
        return self.name == "max_iou"


class BoxCoderConfig(Section):
    name: str = "deltas"  # a key of detector.ops.coders.BOX_CODERS
    # deltas: what they are divided by, of centres and of sides; elsewhere often 0.1 and 0.2
    stds: Annotated[list[Positive], Field(min_length=2, max_length=2)] = [1.0, 1.0]
    # distribution: the largest distance of a side from the anchor's centre, in units
    reg_max: Annotated[int, Field(ge=4, le=1000)] = 16
    unit: Positive = 0.125  # distribution: in sides of the anchor, a stride if they have 8


class LossConfig(Section):
    cls: str = "focal"  # a key of detector.ops.losses.CLASS_LOSSES
    alpha: Probability = 0.25  # focal: weight of positives; focal and varifocal: 1 - alpha is that of negatives
    gamma: Annotated[float, Field(ge=0)] = 2.0  # the power of the focal losses, β of the quality focal loss
    cls_weight: Annotated[float, Field(ge=0)] = 1.0
    box: str = "smooth_l1"  # a key of detector.ops.losses.BOX_LOSSES
    beta: Positive = 0.1  # smooth L1: where the loss turns from quadratic to linear
    box_weight: Annotated[float, Field(ge=0)] = 1.0
    # What weighs an image's positive anchors in the box losses: all equal; the best class score (GFL); or the target of
    # head.quality's branch, without one that of the class score (ATSS, VFNet, TOOD).
    weigh_boxes: Literal["equal", "score", "quality"] = "equal"
    dfl_weight: Annotated[float, Field(ge=0)] = 0.25  # distribution focal loss of box_coder distribution
    quality_weight: Annotated[float, Field(ge=0)] = 1.0  # of the branch that head.quality adds
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # classification and segmentation
    dice_weight: Annotated[float, Field(ge=0)] = 0.0  # segmentation: of the Dice loss beside cross entropy (cls_weight)


class PredictConfig(Section):
    topk: Count = 1000  # candidates per level, before decoding
    score_threshold: Probability = 0.05
    nms_threshold: Probability = 0.5
    max_detections: Count = 100
    clip: Literal["before_nms", "after_nms"] = "before_nms"  # boxes to the image
    keep_empty: bool = False  # keep boxes without area in the image, as torchvision does
    # Test-time augmentation: each image is also predicted as its mirror image, and at these factors of the input size.
    # Boxes of all of them go through one more NMS, classes' scores are averaged.
    flip: bool = False
    scales: Annotated[list[Positive], Field(min_length=1)] = [1.0]
    # Lowest score by class name in inference; evaluation needs all. evaluate --keep-thresholds chooses them.
    score_thresholds: dict[str, Probability] | None = None
    classes: Count = 5  # classification: how many of the best classes are written per image
    # Of the network in evaluation and inference, independent of training; boxes, scores and NMS are always in fp32.
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    # torch.compile of the network in evaluate and infer, on a GPU as a CUDA graph: a minute for each size of batch and
    # images, so for data.resize.fixed; needs a C++ compiler.
    compile: bool = False


IMAGENET_MEAN, IMAGENET_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


class NormaliseConfig(Section):
    """Per channel, of values 0..255 (16-bit values are divided by 257).

    null takes the normalisation of the weights that training starts from, a network's or a checkpoint's; for random
    weights, and in a checkpoint, it means ImageNet's, RGB. Unless there are three channels, each gets their mean.
    """

    mean: list[float] | None = None
    std: list[Positive] | None = None


class ModelConfig(Section):
    # A checkpoint of this package, torchvision, Detectron2 or MMDetection to start from: a path, a URL, or a name of
    # torchvision's, such as RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1. Tensors that fit are loaded, classes by name.
    weights: str | None = None
    in_channels: Annotated[int, Field(ge=1, le=4096)] = 3  # 3: RGB; 1: gray; else images must have exactly as many
    normalise: NormaliseConfig = NormaliseConfig()
    backbone: BackboneConfig | None = BackboneConfig()  # null if pyramid.branches replace it
    pyramid: PyramidConfig = PyramidConfig()
    fpn: FPNConfig = FPNConfig()
    anchors: AnchorConfig = AnchorConfig()
    head: HeadConfig = HeadConfig()
    matcher: MatcherConfig = MatcherConfig()
    box_coder: BoxCoderConfig = BoxCoderConfig()
    loss: LossConfig = LossConfig()
    predict: PredictConfig = PredictConfig()
    multi_label: bool = False  # classification: any number of labels per image, each with its own score

    @model_validator(mode="before")
    @classmethod
    def _branches_replace_backbone(cls, tree: Any) -> Any:
        pyramid = tree.get("pyramid") if isinstance(tree, dict) else None
        branches = pyramid.get("branches") if isinstance(pyramid, dict) else getattr(pyramid, "branches", None)
        if not branches:
            return tree
        if tree.get("backbone") is not None:
            raise ValueError("backbone: pyramid.branches name the networks; set backbone: null, or remove branches")
        return tree | {"backbone": None}

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if unknown := sorted(set(self.anchors.levels) - set(self.fpn.levels)):
            raise ValueError(f"anchors.levels: {unknown[0]} is not in fpn.levels {self.fpn.levels}")
        if not self.backbones:
            raise ValueError("backbone: is null, and pyramid.branches is empty; set one of them")
        for name, values in (("mean", self.normalise.mean), ("std", self.normalise.std)):
            if values is not None and len(values) != self.in_channels:
                raise ValueError(f"normalise.{name}: {len(values)} values for {self.in_channels} in_channels")
        if self.head.quality == "distribution" and self.box_coder.name == "deltas":
            raise ValueError("head.quality: distribution needs box_coder.name distribution; deltas have none")
        if self.loss.box in ("l1", "smooth_l1") and self.box_coder.name == "distribution":
            raise ValueError(
                f"loss.box: {self.loss.box} compares channels, which in box_coder.name distribution are not yet a box;"
                " use giou, diou or ciou"
            )
        has_quality = self.head.quality in ("centerness", "iou") or self.loss.cls != "focal"
        if self.loss.weigh_boxes == "quality" and not has_quality and self.matcher.name in ("max_iou", "atss"):
            raise ValueError(
                "loss.weigh_boxes: quality has no effect, as nothing gives anchors one: set head.quality, loss.cls or"
                " matcher.name too"
            )
        if self.head.name == "classic" and self.backbone is None:
            raise ValueError("head.name: classic is one network's own classifier; with pyramid.branches use pooled")
        return self

    @property
    def backbones(self) -> list[BackboneConfig]:
        """All networks: the backbone, or the branches."""
        return [self.backbone] if self.backbone else self.pyramid.branches

    @property
    def mean(self) -> list[float]:
        return self.normalise.mean or for_channels(IMAGENET_MEAN, self.in_channels)

    @property
    def std(self) -> list[float]:
        return self.normalise.std or for_channels(IMAGENET_STD, self.in_channels)


def for_channels(values: list[float], in_channels: int) -> list[float]:
    """RGB's values for another number of channels."""
    return values if in_channels == 3 else [sum(values) / 3] * in_channels


# --- training ---------------------------------------------------------------------------------------------------------


class OptimizerConfig(Section):
    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.01  # for a batch of lr_batch_size; scaled linearly with train.batch_size
    lr_batch_size: Count = 16
    momentum: Probability = 0.9  # sgd
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    backbone_rate: Positive = 1.0  # factor of the rate of backbones
    layer_decay: Fraction = 1.0  # and of each stage's rate from that of the next: C5 1, C4 this, C3 its square ...
    decay_norm_and_bias: bool = True  # false: only weights of convolutions and linear layers decay


class ScheduleConfig(Section):
    name: Literal["multistep", "cosine"] = "multistep"
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    warmup_epochs: Annotated[float, Field(ge=0)] | None = None  # instead of warmup_steps
    warmup_factor: Annotated[float, Field(gt=0, le=1)] = 0.001
    milestones: list[Probability] = [2 / 3, 8 / 9]  # multistep: fractions of the whole run
    gamma: Positive = 0.1  # multistep: factor at each milestone


_COUNT: TypeAdapter[int] = TypeAdapter(Count)


class TrainConfig(Section):
    # Images per optimizer step, over all ranks and accumulated parts. auto: the most that a GPU's memory holds, less a
    # tenth; the run's config then has the number.
    batch_size: int | Literal["auto"] = 16
    accumulate: Count = 1  # parts in which a rank computes its images; changes memory, not mathematics
    epochs: Count = 12
    steps: Count | None = None  # stop after this many optimizer steps instead
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip_norm: Positive | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    # On a GPU: what may compute fp32 in TF32, several times faster with factors of 10 bits. The default is PyTorch's.
    tf32: Literal["nothing", "convolutions", "everything"] = "convolutions"
    # On a GPU: only operations whose result is the same bits each time; slower. On a CPU that is always so.
    deterministic: bool = False
    ema: Annotated[float, Field(gt=0, lt=1)] | None = (
        None  # decay of the averaged weights, which are evaluated and saved
    )
    # After n updates the decay is ema · (1 - exp(-n / ema_tau)): YOLOv5 has 0.9999 and 2000, RF-DETR 0.993 and 100.
    # null: min(ema, (1 + n) / (10 + n)).
    ema_tau: Positive | None = None
    patience: Count | None = None  # stop after so many evaluations in a row without a better score
    compile: bool = False  # torch.compile: minutes at the start, then faster steps; needs a C++ compiler
    # Recompute the inner features of the network's blocks and the head's towers in the backward pass: about half the
    # memory, a third more time, the same mathematics.
    activation_checkpointing: bool = False
    # last.pt is written after this many steps or minutes, whichever comes first, and at every epoch's end.
    checkpoint_steps: Count = 1000
    checkpoint_minutes: Positive = 10.0
    # A loss or gradient that is not finite: stop, or skip the step without any change, at most max_skips times per run.
    non_finite: Literal["stop", "skip"] = "stop"
    max_skips: Count = 20
    log_steps: Count = 20  # steps between progress lines if there is no terminal for a bar
    trackers: list[Literal["tensorboard", "mlflow", "wandb"]] = []  # that also get metrics.jsonl's numbers (extras)
    tensorboard: bool = False  # the same as "tensorboard" in trackers

    @field_validator("batch_size", mode="plain")
    @classmethod
    def _number_or_auto(cls, value: Any) -> int | Literal["auto"]:
        if value == "auto":
            return "auto"
        try:
            return _COUNT.validate_python(value)
        except ValidationError:
            raise ValueError(f"must be a whole number of at least 1, or auto; it is {str(value)[:50]!r}") from None

    @model_validator(mode="after")
    def _tau_of_an_average(self) -> TrainConfig:
        if self.ema_tau is not None and self.ema is None:
            raise ValueError("ema_tau: has no effect without an average; set ema, or remove it")
        return self

    @model_validator(mode="after")
    def _recompute_once(self) -> TrainConfig:
        if self.compile and self.activation_checkpointing:
            raise ValueError("activation_checkpointing: compile chooses by itself what to keep; set only one of them")
        return self


class EvalConfig(Section):
    every_epochs: Count = 1
    batch_size: Count = 8  # per rank
    backend: Literal["hotcoco", "pycocotools"] = "hotcoco"
    # Segmentation: also the IoU of the pixels within 2 % of the image's diagonal of a border (Cheng et al. 2021).
    boundary_iou: bool = False
    per_class: bool = True


# Keys that may be auto: the training data decides them once, before the first step, in this order.
DERIVED = ("data.resize.long", "model.anchors.base_size", "train.schedule.warmup_steps")
# Keys that take the place of one of them: nothing is derived then.
INSTEAD = {"data.resize.long": "data.resize.fixed", "train.schedule.warmup_steps": "train.schedule.warmup_epochs"}


class Config(Section):
    """A whole experiment."""

    task: str = "detection"  # a key of detector.config.tasks.TASKS
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    # The keys of DERIVED that are auto: the loader moves them here, and a run's own config has their values instead.
    auto: list[str] = []

    @model_validator(mode="after")
    def _evaluations_to_wait_for(self) -> Config:
        if self.train.patience is not None and not self.data.has_val:
            raise ValueError("train.patience: counts evaluations, and data.val is null; set data.val or data.val_share")
        return self

    @field_validator("auto")
    @classmethod
    def _derived(cls, keys: list[str]) -> list[str]:
        for key in keys:
            if key not in DERIVED:
                raise ValueError(f"{key} is not derived from data; use {one_of(DERIVED)}")
        return keys

    @field_validator("task")
    @classmethod
    def _known_task(cls, name: str) -> str:
        if name not in TASKS:
            raise ValueError(f"unknown task {name!r}; use {one_of(TASKS)}")
        return name
