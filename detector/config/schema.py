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

from detector.config.tasks import TASKS
from detector.errors import one_of

Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, lt=2**31)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Python's bool is an int, and pydantic takes it for one: epochs: yes would be one epoch.
        if isinstance(value, bool) and _is_number(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError(f"must be a number; it is {value}")
        return value


def _is_number(annotation: Any) -> bool:
    """Whether a type is a number's, or an optional number's such as ``Count | None``."""
    if get_origin(annotation) in (Annotated, UnionType, Union):
        return any(map(_is_number, get_args(annotation)))
    return annotation in (int, float)


# --- data -------------------------------------------------------------------------------------------------------------


class SplitConfig(Section):
    """The files of one data set."""

    # Detection: a COCO JSON file. Classification: a CSV file of paths and labels, or null for one folder per class.
    annotations: str | None = None
    images: str | None = None  # the folder that file names are relative to, or that holds one folder per class


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
    photometric: Probability = 0.0  # probability of brightness and contrast jitter, of saturation and hue in RGB
    # Such as [0.5, 2.0]; over 1 crops.
    scale_jitter: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = None
    min_visibility: Probability = 0.25  # boxes of which a crop keeps a smaller fraction become ignore regions
    # Mix two images by fractions drawn from Beta(α, α). The value is α, 0 = off; if both are on, each gets half of the
    # images.
    mixup: Annotated[float, Field(ge=0)] = 0.0  # blended (Zhang et al. 2018)
    cutmix: Annotated[float, Field(ge=0)] = 0.0  # a window of the other image (Yun et al. 2019)
    # albumentations' transforms, applied in this order at the input size, after flips and colours: the name and
    # arguments of each, such as {name: GaussNoise, p: 0.2}. Boxes follow.
    transforms: list[dict[str, JsonValue]] = []

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


class DataConfig(Section):
    train: SplitConfig = SplitConfig()
    val: SplitConfig | None = SplitConfig()  # null without val_share: no evaluation, last.pt is the result
    invalid_boxes: Literal["error", "clip", "drop"] = "error"
    # Allow file names that lead out of the images' folder, absolute or by "..". Links are followed anyway.
    allow_outside: bool = False
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
    classes: Annotated[list[str], Field(min_length=1)] | None = None  # null: those in data.train, by name
    # null: all equal; balanced: inversely proportional to the number of images; or a weight per class, 1 for others.
    class_weights: Literal["balanced"] | dict[str, Positive] | None = None
    resize: ResizeConfig = ResizeConfig()
    crop: CropConfig = CropConfig()
    augment: AugmentConfig = AugmentConfig()
    group_by_aspect: bool = True  # batches of either portrait or landscape images, which need little padding
    workers: Annotated[int, Field(ge=0, le=1024)] = 2  # loading processes per rank

    @property
    def has_val(self) -> bool:
        """Whether there is data to evaluate on."""
        return self.val is not None or self.val_share is not None

    @model_validator(mode="after")
    def _each_class_once(self) -> DataConfig:
        if duplicates := [name for name in self.classes or [] if (self.classes or []).count(name) > 1]:
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
    channels: Count | None = None  # null: as the pyramid
    norm: Literal["none", "gn"] = "none"
    norm_bias: bool = False  # convolutions before a norm have a bias too, as in Detectron2
    prior: Annotated[float, Field(gt=0, lt=1)] = 0.01  # initial score of every class (RetinaNet, section 4.1)
    # pooled
    pool: Literal["avg", "max", "gem"] = "avg"  # each level to one vector; gem: generalised mean
    fuse: Literal["mean", "concat", "learned"] = "concat"  # the levels' vectors; learned: a weighted mean
    hidden: list[Count] = []  # widths of fully connected layers before the last one
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # before every fully connected layer

    @model_validator(mode="after")
    def _norm_for_the_bias(self) -> HeadConfig:
        if self.norm_bias and self.norm == "none":
            raise ValueError("norm_bias: convolutions without a norm always have a bias; remove it, or use norm: gn")
        return self


class MatcherConfig(Section):
    name: str = "max_iou"  # a key of detector.ops.assignment.ASSIGNERS
    positive: Annotated[float, Field(gt=0, le=1)] = 0.5
    negative: Probability = 0.4
    low_quality: bool = True
    ignore_cover: Probability = 0.5  # anchors with more than this fraction in a crowd region are ignored

    @model_validator(mode="after")
    def _ordered(self) -> MatcherConfig:
        if self.negative > self.positive:
            raise ValueError(f"negative: {self.negative} must not be greater than positive: {self.positive}")
        return self


class BoxCoderConfig(Section):
    name: str = "deltas"  # a key of detector.ops.coders.BOX_CODERS


class LossConfig(Section):
    cls: str = "focal"  # a key of detector.ops.losses.CLASS_LOSSES
    alpha: Probability = 0.25
    gamma: Annotated[float, Field(ge=0)] = 2.0
    cls_weight: Annotated[float, Field(ge=0)] = 1.0
    box: str = "smooth_l1"  # a key of detector.ops.losses.BOX_LOSSES
    beta: Positive = 0.1  # smooth L1: where the loss turns from quadratic to linear
    box_weight: Annotated[float, Field(ge=0)] = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # classification


class PredictConfig(Section):
    topk: Count = 1000  # candidates per level, before decoding
    score_threshold: Probability = 0.05
    nms_threshold: Probability = 0.5
    max_detections: Count = 100
    clip: Literal["before_nms", "after_nms"] = "before_nms"  # boxes to the image
    keep_empty: bool = False  # keep boxes without area in the image, as torchvision does
    classes: Count = 5  # classification: how many of the best classes are written per image
    # Of the network in evaluation and inference, independent of training; boxes, scores and NMS are always in fp32.
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"


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
    decay_norm_and_bias: bool = True  # false: only weights of convolutions and linear layers decay


class ScheduleConfig(Section):
    name: Literal["multistep", "cosine"] = "multistep"
    warmup_steps: Annotated[int, Field(ge=0)] = 500
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
    tensorboard: bool = False  # also write metrics.jsonl's numbers for TensorBoard (extra: log)

    @field_validator("batch_size", mode="plain")
    @classmethod
    def _number_or_auto(cls, value: Any) -> int | Literal["auto"]:
        if value == "auto":
            return "auto"
        try:
            return _COUNT.validate_python(value)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise ValueError(f"{message[0].lower()}{message[1:]}, or auto; it is {str(value)[:50]!r}") from None

    @model_validator(mode="after")
    def _recompute_once(self) -> TrainConfig:
        if self.compile and self.activation_checkpointing:
            raise ValueError("activation_checkpointing: compile chooses by itself what to keep; set only one of them")
        return self


class EvalConfig(Section):
    every_epochs: Count = 1
    batch_size: Count = 8  # per rank
    backend: Literal["hotcoco", "pycocotools"] = "hotcoco"
    per_class: bool = True


class Config(Section):
    """A whole experiment."""

    task: str = "detection"  # a key of detector.config.tasks.TASKS
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    @field_validator("task")
    @classmethod
    def _known_task(cls, name: str) -> str:
        if name not in TASKS:
            raise ValueError(f"unknown task {name!r}; use {one_of(TASKS)}")
        return name
