"""RetinaNet-style detection on feature pyramids: train, evaluate and infer on COCO-format data.

The parts are plain modules (``detector.config.schema``, ``detector.models``, ``detector.tasks.detection``, ...),
imported by name, so that ``import detector`` stays cheap. Most programs need only :func:`train` and :func:`load`.

**Stable** is what this page lists, and with it :class:`detector.inference.predictor.Predictor` and its predictions, the
classes of :mod:`detector.errors`, commands with their options and exit codes, config keys, and the files of a run:
CHANGELOG.md announces a change, and what was written before is still read. The modules below are for those who take
or swap parts: their docstrings are meant to be read, but names may move from one version to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detector.data.own import OwnData
    from detector.inference.predictor import Predictor

__version__ = "0.1.0"


def load(checkpoint: str | Path, device: str | None = None) -> Predictor:
    """A ready :class:`detector.inference.predictor.Predictor` of a checkpoint (``runs/x/best.pt``) or a run.

    ``device`` defaults to the first GPU, else the CPU. Raises :class:`detector.errors.WeightsError` for a file that is
    missing or is no checkpoint of this package. Nothing else of the process changes: no environment, signals, warnings,
    threads or random numbers. Random weights give denormals, which ``torch.set_flush_denormal(True)`` makes fast on a
    CPU, as the commands do.
    """
    from detector.inference.predictor import Predictor

    return Predictor.from_checkpoint(checkpoint, device)


def train(
    config: str | Path,
    overrides: Sequence[str] = (),
    name: str | None = None,
    runs: str | Path = "runs",
    resume: bool = False,
    device: str | None = None,
    data: OwnData | None = None,
) -> Path:
    """Train as ``detector train`` does; returns the run's folder ``runs/name``, which :func:`load` takes.

    ``config`` is a YAML file or the name of one of the package's, ``overrides`` are ``key=value``, ``name`` is the
    config's unless it is given. ``data`` is (train, val) or (train, None), each a
    :class:`~detector.data.own.BoxData`, instead of the files that the config names. Under ``torchrun`` each process
    makes the same call. Raises :class:`~detector.errors.DetectorError` for all that a person can fix, and
    KeyboardInterrupt after Ctrl-C or SIGTERM, when all is saved and the same call with ``resume=True`` continues.
    """
    from detector.config.loader import load_config
    from detector.training import distributed
    from detector.training.fitting import fit
    from detector.training.run_folder import RunFolder

    run = RunFolder.named(runs, Path(config).stem if name is None else name)
    resolved = load_config(config, overrides)
    try:
        if not fit(resolved, run, distributed.start(device), resume, data):
            raise KeyboardInterrupt(f"{run.path}: stopped; everything is saved, resume=True continues")
    finally:
        distributed.stop()
    return run.path
