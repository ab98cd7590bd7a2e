"""The numbers of metrics.jsonl, sent to programs that show them: TensorBoard, MLflow, Weights & Biases.

A thread of its own sends them, so a tracker that is slow or broken neither slows nor stops training: one notice says
that it is given up. Nothing leaves this machine unless the environment says so, as for each program
(``MLFLOW_TRACKING_URI``, ``WANDB_MODE=online``).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from detector.errors import ConfigError
from detector.system.atomic import write_json

IDENTITIES = "trackers.json"  # what each program calls the run, so that a resumed one continues there
PROJECT = "detector"  # where the environment names none
SECONDS_TO_END = 60  # within which a tracker must have taken the last numbers


class Numbers(NamedTuple):
    step: int
    values: dict[str, float]  # by name, such as train/loss


class Run(NamedTuple):
    """What a tracker is told of a run."""

    folder: Path
    settings: dict[str, Any]  # the resolved config
    step: int  # the first that will be sent is the next one
    identity: str | None  # the tracker's own, if it knows the run


class Tracker(Protocol):
    PACKAGE: str  # that must be installed
    identity: str | None  # by which the tracker finds the run again

    def __init__(self, run: Run) -> None: ...
    def show(self, rows: Sequence[Numbers]) -> None: ...
    def close(self, finished: bool) -> None: ...


class TensorBoard:
    """Event files in the run's folder."""

    PACKAGE = "tensorboard"
    identity = None

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run.folder), purge_step=run.step + 1)

    def show(self, rows: Sequence[Numbers]) -> None:
        for step, values in rows:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, finished: bool) -> None:
        self.writer.close()


class MLflow:
    """A run in ``MLFLOW_TRACKING_URI``, or in the folder ``mlruns`` beside the run's."""

    PACKAGE = "mlflow"

    def __init__(self, run: Run) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            uri = (run.folder.parent / "mlruns").resolve().as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")

        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(uri)
        if run.identity is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self.client.get_experiment_by_name(name)
            number = experiment.experiment_id if experiment else self.client.create_experiment(name)
            self.identity = self.client.create_run(number, run_name=run.folder.name).info.run_id
            params = [Param(key, str(value)[:500]) for key, value in _flat(run.settings)]
            for start in range(0, len(params), 100):  # the most that a server takes
                self.client.log_batch(self.identity, params=params[start : start + 100])
        else:
            self.identity = run.identity
            self.client.update_run(self.identity, status="RUNNING")

    def show(self, rows: Sequence[Numbers]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for step, values in rows for name, value in values.items()]
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(self.identity, metrics=metrics[start : start + 1000])

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.identity, "FINISHED" if finished else "KILLED")


class WandB:
    """A run of Weights & Biases: in the run's folder, for ``wandb sync``, unless ``WANDB_MODE`` says online."""

    PACKAGE = "wandb"

    def __init__(self, run: Run) -> None:
        os.environ.setdefault("WANDB_MODE", "offline")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.folder.name,
            dir=str(run.folder),
            id=run.identity,
            resume="allow",
            config=run.settings,
            settings=wandb.Settings(console="off", silent=True, save_code=False),
        )
        self.identity = self.run.id

    def show(self, rows: Sequence[Numbers]) -> None:
        for step, values in rows:
            self.run.log(values, step=step)

    def close(self, finished: bool) -> None:
        self.run.finish(0 if finished else 1)


def _flat(tree: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """A tree of settings as pairs of dotted keys and values."""
    pairs = []
    for key, value in tree.items():
        pairs += _flat(value, f"{above}{key}.") if isinstance(value, dict) and value else [(above + key, value)]
    return pairs


def numbers_of(row: dict[str, Any]) -> Numbers:
    """A row of metrics.jsonl as its numbers: those of a step as ``train/NAME``, of an evaluation as such."""
    sections = {"train": row} | {key: value for key, value in row.items() if isinstance(value, dict)}
    return Numbers(
        row["step"],
        {
            f"{section}/{key}": value
            for section, values in sections.items()
            for key, value in values.items()
            if isinstance(value, int | float) and key != "step"
        },
    )


class Trackers:
    """All trackers of a run, behind a thread for each."""

    def __init__(self, names: Sequence[str], run: Run) -> None:
        self.path = run.folder / IDENTITIES
        known: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):  # a run without, or a damaged file: new runs there
            known = json.loads(self.path.read_text(encoding="utf-8"))
        self.identities, self.lock = known, threading.Lock()
        self.queues: dict[str, SimpleQueue[Numbers | bool]] = {name: SimpleQueue() for name in names}
        self.threads = [
            threading.Thread(
                target=self._serve, args=(name, run._replace(identity=known.get(name))), name=name, daemon=True
            )
            for name in names
        ]
        for thread in self.threads:
            thread.start()

    def show(self, row: dict[str, Any]) -> None:
        for queue in self.queues.values():
            queue.put(numbers_of(row))

    def close(self, finished: bool) -> None:
        """Send what is left, for a limited time."""
        for queue in self.queues.values():
            queue.put(finished)
        end = time.monotonic() + SECONDS_TO_END
        for thread in self.threads:
            thread.join(max(0, end - time.monotonic()))
            if thread.is_alive():
                self._notice(thread.name, f"did not answer within {SECONDS_TO_END} s; it lacks the last numbers")

    def _serve(self, name: str, run: Run) -> None:
        try:
            tracker = TRACKERS[name](run)
            self._keep(name, tracker.identity)
            queue, finished = self.queues[name], None
            while finished is None:
                items = [queue.get()]
                while not queue.empty():
                    items.append(queue.get())
                tracker.show([item for item in items if isinstance(item, Numbers)])
                finished = next((item for item in items if isinstance(item, bool)), None)
            tracker.close(finished)
        except Exception as error:  # whatever it is, training goes on
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self._notice(name, f"failed, and gets no more numbers ({reason}); metrics.jsonl has them all")

    def _keep(self, name: str, identity: str | None) -> None:
        with self.lock:
            if identity is not None and self.identities.get(name) != identity:
                self.identities[name] = identity
                write_json(self.path, self.identities)

    def _notice(self, name: str, text: str) -> None:
        tqdm.write(f"warning: train.trackers: {name} {text}", file=sys.stderr)


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are not installed, before a run begins."""
    for name in names:
        if importlib.util.find_spec(TRACKERS[name].PACKAGE) is None:
            raise ConfigError(
                f"train.trackers: {name} is not installed; pip install 'pyramid-detector[{name}]', or remove it"
            )
