"""The predictor of an exported ONNX file: the same images in, the same predictions out. Imports no torch."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from detector.data.transforms.resize import by_shape, padded
from detector.errors import ConfigError, DataError, WeightsError, one_of
from detector.inference.images import ImagePredictor, by_tiles
from detector.structures import Category
from detector.tasks import get_results
from detector.tasks.tiling import tiles_of

if TYPE_CHECKING:
    import onnxruntime

SUFFIX = ".onnx"
FORMAT = 1  # of the metadata
DTYPES = {
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(int64)": np.int64,
    "tensor(float)": np.float32,
}


class Sample(NamedTuple):
    """An image as the network takes it."""

    image: np.ndarray  # [C, H, W] uint8 or uint16, not padded
    size_original: tuple[int, int]  # height, width


class ExportedPredictor(ImagePredictor):
    """An exported file with the interface of :class:`detector.inference.predictor.Predictor`.

    ``settings`` names the values of ``model.predict`` that can be changed; the others were fixed at export.
    """

    device = "cpu"

    def __init__(self, path: str | Path, overrides: Sequence[str] = (), threads: int | None = None) -> None:
        self.path = Path(path)
        self.session = _open(self.path, threads)
        self.metadata = metadata = read_metadata(self.session, self.path)
        self.config = _as_attributes(metadata["config"])
        self.config.model.predict.score_thresholds = metadata["config"]["model"]["predict"]["score_thresholds"]
        self.categories = [Category(**category) for category in metadata["classes"]]
        self.settings: list[str] = metadata["settings"]
        self.kind: str = metadata["kind"]
        self.results = get_results(metadata["task"])
        inputs = {value.name: value for value in self.session.get_inputs()}
        inputs |= {value.name: value for value in self.session.get_overridable_initializers()}
        self.inputs = {name: DTYPES[value.type] for name, value in inputs.items()}
        self.dtype = self.inputs["images"]
        for override in overrides:
            self._override(override)

    def _override(self, override: str) -> None:
        """``model.predict.score_threshold=0.3``, for a setting that the file can change."""
        key, _, text = override.partition("=")
        if key.startswith("data.tiles.") and hasattr(self.config.data, "tiles"):
            try:
                value = ast.literal_eval({"null": "None", "true": "True", "false": "False"}.get(text, text))
            except (ValueError, SyntaxError):
                value = text
            setattr(self.config.data.tiles, key.removeprefix("data.tiles."), value)
            tiles_of(self.config)
            return
        name = key.removeprefix("model.predict.")
        if name not in self.settings or name == key:
            known = [f"model.predict.{setting}" for setting in self.settings]
            remedy = f"only {one_of(known)} and data.tiles can change" if known else "its settings were fixed at export"
            raise ConfigError(f"command line: {key}: {self.path} is an exported model, of which {remedy}")
        was = getattr(self.config.model.predict, name)
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = None
        is_count = isinstance(was, int)
        if isinstance(value, bool) or not isinstance(value, int if is_count else int | float):
            value = None
        if value is None or not (value >= 1 if is_count else 0 <= value <= 1):
            wanted = "a whole number of at least 1" if is_count else "a number from 0 to 1"
            raise ConfigError(f"command line: {key}: {text!r} is not {wanted}")
        setattr(self.config.model.predict, name, value)

    def follow(self, predict: Any) -> None:
        """Take the settings of another config's ``model.predict``, of which only some may differ."""
        own = self.config.model.predict
        for name, was in vars(own).items():
            if getattr(predict, name) != was:
                self._override(f"model.predict.{name}={getattr(predict, name)}")

    def check_score(self, score: float) -> None:
        """Refuse a score threshold where the file takes none."""
        if "score_threshold" not in self.inputs:
            why = "its thresholds were fixed at export" if self.results.INPUTS else f"it is of {self.config.task}"
            raise ConfigError(f"score: the exported model has no lowest score to change: {why}")

    def sampler(self) -> Callable[[np.ndarray, int], Sample]:
        return self._sample

    def _sample(self, image: np.ndarray, image_id: int) -> Sample:
        if image.dtype == np.uint16 and self.dtype == np.uint8:
            self.refuse_depth()
        pixels = self.results.prepare(image, self.config.data)
        return Sample(pixels.transpose(2, 0, 1), image.shape[:2])

    def refuse_depth(self) -> NoReturn:
        raise DataError("an image has 16 bits, the exported model takes 8; export it with --bits 16, which takes both")

    def predict_samples(self, samples: list[Sample], score_threshold: float | None = None) -> list[Any]:
        predict, predictions = self.config.model.predict, [None] * len(samples)
        if score_threshold is not None:
            predict = SimpleNamespace(**vars(predict) | {"score_thresholds": None})
        for indices, outputs in self._predict_each(samples, score_threshold):
            found = self.results.as_predictions(outputs, self.categories, predict)
            for index, prediction in zip(indices, found, strict=True):
                predictions[index] = prediction._replace(reading=self.reading)
        return predictions

    def outputs(self, samples: list[Sample], score_threshold: float | None = None) -> list[tuple[np.ndarray, ...]]:
        outputs: list[Any] = [()] * len(samples)
        for indices, predicted in self._predict_each(samples, score_threshold):
            for index, *own in zip(indices, *predicted, strict=True):
                outputs[index] = tuple(own)
        return outputs

    def _predict_each(
        self, samples: list[Sample], score_threshold: float | None
    ) -> Iterator[tuple[list[int], list[np.ndarray]]]:
        """The outputs for the samples of each shape, and their indices."""
        if score_threshold is not None:
            self.check_score(score_threshold)
        given = {} if score_threshold is None else {"score_threshold": score_threshold}
        for indices in by_shape(samples):
            yield indices, self.run(*self.batch([samples[index] for index in indices]), **given)

    def batch(self, samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Padded images [B, C, H, W], their sizes before padding and in their files, [B, 2]."""
        sizes = np.array([sample.image.shape[-2:] for sample in samples], dtype=np.int64)
        height, width = padded(sizes.max(axis=0), self.results.DIVISOR).tolist()
        images = np.zeros((len(samples), samples[0].image.shape[0], height, width), dtype=self.dtype)
        for row, (image, _) in enumerate(samples):
            factor = 257 if self.dtype == np.uint16 and image.dtype == np.uint8 else 1  # 255 becomes 65535
            np.multiply(image, self.dtype(factor), out=images[row, :, : image.shape[1], : image.shape[2]])
        return images, sizes, np.array([sample.size_original for sample in samples], dtype=np.int64)

    def feed(self, images: np.ndarray, sizes: np.ndarray, sizes_original: np.ndarray, **settings: Any) -> dict:
        """The file's inputs; ``settings`` replace those of ``model.predict``."""
        feed = {"images": images, "sizes": sizes, "sizes_original": sizes_original}
        for name in self.results.INPUTS:
            feed[name] = np.array(settings.get(name, getattr(self.config.model.predict, name)))
        return {name: feed[name].astype(dtype, copy=False) for name, dtype in self.inputs.items() if name in feed}

    def run(self, *batch: np.ndarray, **settings: Any) -> list[np.ndarray]:
        """The file's outputs for the images of one padded shape that :meth:`batch` made."""
        return self.session.run(list(self.results.OUTPUTS), self.feed(*batch, **settings))

    def digest(self) -> str:
        values = json.dumps(vars(self.config.model.predict), sort_keys=True)
        return hashlib.sha256(self.path.read_bytes() + values.encode()).hexdigest()


def _open(path: Path, threads: int | None) -> onnxruntime.InferenceSession:
    try:
        import onnxruntime
    except ImportError:
        raise WeightsError(
            f"{path}: an exported model needs onnxruntime; install it with: pip install 'pyramid-detector[export]'"
        ) from None
    if not path.is_file():
        raise WeightsError(f"{path}: is not a file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: warnings are about the graph's form
    if threads:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own classes have no common base
        reason = " ".join(str(error).split())[:120]
        raise WeightsError(f"{path}: is not an ONNX file that can be opened: {reason}") from None


def read_metadata(session: onnxruntime.InferenceSession, path: Path) -> dict[str, Any]:
    """What the file says of itself. Raises WeightsError where ``detector export`` did not write it."""
    texts = session.get_modelmeta().custom_metadata_map
    if "config" not in texts or "format" not in texts:
        raise WeightsError(f"{path}: was not written by detector export: it does not describe its images and classes")
    if texts["format"] != str(FORMAT):
        raise WeightsError(f"{path}: has format {texts['format']}, this version reads {FORMAT}; export it again")
    try:
        return texts | {name: json.loads(texts[name]) for name in ("classes", "settings", "config")}
    except (KeyError, ValueError):
        raise WeightsError(f"{path}: its description is damaged; export it again") from None


def _as_attributes(tree: Any) -> Any:
    """A tree of dicts as objects with attributes, as a config has them."""
    if isinstance(tree, dict):
        return SimpleNamespace(**{name: _as_attributes(value) for name, value in tree.items()})
    return tree


def open_predictor(
    source: str | Path,
    device: str | None = None,
    overrides: Sequence[str] = (),
    allow_code: bool = False,
    batch_size: int = 8,
) -> ImagePredictor:
    """The predictor of an exported file, or of a checkpoint where torch is installed.

    Where ``data.tiles`` says so, it sees images tile by tile, ``batch_size`` tiles at a time.
    """
    if Path(source).suffix == SUFFIX:
        return by_tiles(ExportedPredictor(source, overrides), batch_size)
    try:
        import torch

        from detector.inference.predictor import Predictor
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"{source}: opening a checkpoint needs {error.name}, which is not installed; give an exported model"
            f" ({SUFFIX}), which detector export writes"
        ) from None
    torch.set_flush_denormal(True)  # random weights give denormals, which slow convolutions several times on a CPU
    return by_tiles(Predictor.from_checkpoint(source, device, overrides, allow_code), batch_size)
