"""Prediction by Ray (extra ``ray``): ``infer --engine ray``, and :class:`Predict` for a pipeline of one's own:

    import ray
    from detector.ray import Predict

    files = ray.data.from_items([{"path": path} for path in paths])  # files or URLs
    given = {"checkpoint": "runs/mine", "score": 0.5}
    found = files.map_batches(Predict, fn_constructor_kwargs=given, batch_size=16, concurrency=2)
    found.write_parquet("found/")

Ray's usage reports are off unless ``RAY_USAGE_STATS_ENABLED`` says otherwise.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
from tqdm import tqdm

from detector.data.images import decode_image
from detector.data.inputs import as_array
from detector.data.names import is_url
from detector.data.remote import Url, read_bytes
from detector.errors import ConfigError, DetectorError
from detector.inference.exported import open_predictor
from detector.inference.folder import PART, Images, infer_folder, list_digest
from detector.inference.images import ImagePredictor
from detector.inference.parts import Finished, Joined, link_images
from detector.tasks import get_results

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

BLOCKS, TABLE = "blocks", "predictions.parquet"
BLOCK = 256  # images; rounded up to whole batches, so that batches are those of one process
RESUME = "continue with the same command and --resume"


class Predict:
    """A callable class for ``map_batches``: it holds the model, and adds the columns ``results`` and ``error``.

    Of each row it takes ``image`` (an array [H, W, C], RGB), or ``bytes`` (a file's; its name, for messages, in
    ``path``), or ``path`` (a file or URL). ``results`` is JSON text, a list of what ``predictions.json`` has for an
    image. An image that cannot be read is a row with its ``error``, and without results.
    """

    def __init__(
        self,
        checkpoint: str,
        score: float | None = None,
        device: str | None = None,
        overrides: Sequence[str] = (),
        allow_code: bool = False,
    ) -> None:
        self.predictor = open_predictor(checkpoint, device, overrides, allow_code)
        self.results = get_results(self.predictor.config.task)
        if score is not None:
            self.predictor.check_score(score)
        self.score = score

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        number = len(next(iter(batch.values())))
        samples, errors = [], [""] * number
        for index in range(number):
            try:
                samples.append(self.predictor.sample(self._image({key: batch[key][index] for key in batch}), index))
            except DetectorError as error:
                errors[index] = str(error)
        found = iter(self.predictor.predict_samples(samples, self.score))
        names = batch["path"] if "path" in batch else [""] * number
        results = [
            None if error else json.dumps(self.results.to_results(next(found), index, Path(str(names[index]))))
            for index, error in enumerate(errors)
        ]
        return batch | {"results": results, "error": [error or None for error in errors]}

    def _image(self, row: dict[str, Any]) -> np.ndarray:
        how = self.predictor.reading
        if "image" in row:
            return as_array(np.asarray(row["image"]), *how)
        path = str(row.get("path", "the image"))
        if "bytes" in row:
            return decode_image(Path(path), row["bytes"], *how)
        if is_url(path):
            return decode_image(Url(path), read_bytes(path), *how)  # type: ignore[arg-type]
        return as_array(path, *how)


class _Blocks:
    """An actor that predicts blocks of a list of images, each into a folder of its own; nothing is done twice."""

    def __init__(
        self, images: Any, size: int, source: tuple[Any, ...], output: Path, asked: dict[str, Any], folder: str
    ) -> None:
        import ray

        with contextlib.suppress(OSError):  # where paths are relative
            os.chdir(folder)
        self.images: Images = ray.get(images)
        self.digest, self.size, self.output, self.asked = list_digest(self.images.names), size, output, asked
        self.predictor = open_predictor(*source)
        own = self.predictor.digest()
        self.predictor.digest = lambda: own  # type: ignore[method-assign]
        # Ray's processes have threads, which forked loaders would not survive.
        self.predictor.read = MethodType(ImagePredictor.read, self.predictor)  # type: ignore[method-assign]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        for number in batch["id"].tolist():
            folder, indices = block_folder(self.output, number), slice(number * self.size, (number + 1) * self.size)
            own = self.images.select(indices, f"block {number}", self.digest)
            if not (folder / PART).exists():
                infer_folder(self.predictor, own, folder, **self.asked, resume=True)
            write_table(Finished(folder, RESUME), folder / TABLE)
        return batch


def check_ray() -> None:
    """Refuse to begin where Ray is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("ray", "pyarrow")):
        raise ConfigError("command line: --engine ray: Ray is not installed: pip install 'pyramid-detector[ray]'")


def block_folder(output: Path, number: int) -> Path:
    return output / BLOCKS / f"{number:06}"


def write_table(part: Finished, path: Path) -> None:
    """A block's rows in Parquet; ``results`` is JSON text. The table comes last: where it is, the block is done."""
    import pyarrow
    import pyarrow.parquet

    from detector.system.atomic import atomic_write

    rows = [
        {
            "name": os.fsencode(name).decode(errors="replace"),
            "height": row["size"][0] if "size" in row else None,
            "width": row["size"][1] if "size" in row else None,
            "results": json.dumps(row["results"], ensure_ascii=False) if "results" in row else None,
            "error": row.get("error"),
        }
        for name, row in ((os.fsdecode(name), row) for name, row in part.named())
    ]
    text, number = pyarrow.string(), pyarrow.int64()
    columns = {"name": text, "height": number, "width": number, "results": text, "error": text}
    with atomic_write(path, "wb") as file:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, pyarrow.schema(columns.items())), file)


def blocks_on_ray(
    images: Images, source: tuple[Any, ...], output: Path, actors: int | None, asked: dict[str, Any]
) -> Joined:
    """Predict all blocks that are not done, and return the rows of all; ``asked`` is what :func:`infer_folder` takes.

    Raises the DetectorError of an actor. A killed actor's block is continued by another one.
    """
    size = -(-BLOCK // asked["batch_size"]) * asked["batch_size"]
    number = -(-len(images) // size)
    todo = [index for index in range(number) if not (block_folder(output, index) / TABLE).exists()]
    if todo:
        with _cluster() as ray, _explained(ray):
            resources = ray.cluster_resources()
            cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
            uses_gpus = gpus > 0 and source[1] != "cpu"
            most = gpus if uses_gpus else cpus
            if actors is not None and actors > most:
                raise ConfigError(f"command line: --actors {actors}: Ray has {most} {'GPUs' if uses_gpus else 'CPUs'}")
            given = (ray.put(images), size, source, output.resolve(), asked, str(Path.cwd()))
            data = ray.data.from_items([{"id": index} for index in todo], override_num_blocks=len(todo))
            done = data.map_batches(
                _Blocks,
                fn_constructor_args=given,
                batch_size=1,
                concurrency=min(actors or most, len(todo)),
                num_cpus=1,
                num_gpus=1 if uses_gpus else 0,
            )
            bar = partial(tqdm, initial=number - len(todo), total=number, unit="block")
            for _ in bar(done.iter_rows(), disable=not sys.stderr.isatty()):
                pass
    parts = [Finished(block_folder(output, index), RESUME) for index in range(number)]
    rows = Joined(parts)
    link_images(parts, asked["exports"], output)
    return rows


@contextlib.contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, connected to ``RAY_ADDRESS`` or to a cluster on this machine that ends with this process."""
    import ray

    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS", "local")
    local = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, logging_level=logging.ERROR, **local)
    except Exception as error:  # of any kind: a machine that is too busy, an address without a cluster
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"--engine ray: Ray does not start ({address}): {reason}; try again, or predict by --shard instead"
        ) from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _explained(ray: Any) -> Iterator[None]:
    """Raise what an actor raised, if it is for the user, instead of Ray's error about it."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, DetectorError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is None:
            raise
        raise cause from None
