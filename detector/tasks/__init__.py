"""Tasks: what the data, the loss, a prediction and a score are. The engine takes one and never asks which."""

from __future__ import annotations

from types import ModuleType

from detector.config import Config
from detector.errors import ConfigError, one_of
from detector.tasks import detection

Task = ModuleType  # with MAIN_METRIC, check, open_split, loss, predict, to_rows, evaluate, describe

TASKS: dict[str, Task] = {
    "detection": detection,
}


def get_task(config: Config) -> Task:
    """The module of the task that the config names, with the names in the config checked against its parts."""
    if config.task not in TASKS:
        raise ConfigError(f"task: unknown task {config.task!r}; use {one_of(TASKS)}")
    task = TASKS[config.task]
    task.check(config.model)
    return task
