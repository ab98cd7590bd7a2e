"""The tasks: each is complete, and only their table knows them by name; tallies."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys

import numpy as np
import pytest
from test_imports import MODULES, REPOSITORY, imported

from detector.config.tasks import TASKS
from detector.evaluation.tally import Tally, merge
from detector.tasks import Results, Task, TiledResults, TiledTask, Views, get_core, get_results, get_views


def names_in(source: str) -> set[str]:
    """The tasks that a module names by a string, docstrings aside, or by an import of the task's modules."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings}
    modules = {name.removeprefix("detector.tasks.").split(".")[0] for name in imported(source)}
    return {task for task in TASKS if {task} & strings or {task, f"{task}_results", f"{task}_views"} & modules}


def test_only_their_table_names_two_tasks() -> None:
    named = {name: names_in(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
    assert {name for name, tasks in named.items() if len(tasks) > 1} == {"detector.config.tasks"}


@pytest.mark.parametrize(
    ("source", "tasks"),
    [
        ('is_labels = task == "classification"', {"classification"}),
        ('SIZES = {"detection": 80, "classification": 1000}', {"classification", "detection"}),
        ("from detector.tasks import classification_views, detection", {"classification", "detection"}),
        ("from detector.tasks.detection import loss", {"detection"}),
        ('"""detection"""\n\n\ndef f():\n    """classification"""', set()),
    ],
)
def test_what_names_a_task(source: str, tasks: set[str]) -> None:
    assert names_in(source) == tasks


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(("part", "get"), [(Task, get_core), (Results, get_results), (Views, get_views)])
def test_every_task_is_complete(name: str, part: type, get: object) -> None:
    """It has all that the protocol has; its functions have as many parameters, with the same defaults."""
    module = get(name)  # type: ignore[operator]
    assert part.__annotations__.keys() <= vars(module).keys()
    of_tiles = {Task: TiledTask, Results: TiledResults}.get(part) if "data.tiles.size" in TASKS[name] else None
    for key, function in [*vars(part).items(), *(vars(of_tiles).items() if of_tiles else [])]:
        if inspect.isfunction(function) and not key.startswith("_"):
            wanted = inspect.signature(function).parameters.values()
            own = inspect.signature(getattr(module, key)).parameters.values()
            assert [parameter.default for parameter in own] == [parameter.default for parameter in wanted][1:], key


def test_views_are_imported_late_and_results_without_torch() -> None:
    def loaded(*modules: str) -> set[str]:
        code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
        command = [sys.executable, "-c", code]
        return {*subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout.split()}

    cores = [f"detector.tasks.{name}" for name in TASKS]
    engines = loaded("detector.training.fitting", "detector.inference.folder", *cores)
    assert not {name for name in engines if name.startswith("detector.") and name.endswith(("_views", "_page"))}
    assert "torch" not in loaded(*(f"{core}_results" for core in cores))


# --- tallies ----------------------------------------------------------------------------------------------------------


def test_tallies_of_batches_and_ranks_become_one() -> None:
    rng = np.random.default_rng(0)
    parts = [Tally(rng.random((count, 3)), rng.integers(9, size=(2, 2))) for count in (3, 0, 2, 1)]
    before = [(part.rows.copy(), part.sums.copy()) for part in parts if part.sums is not None]
    ranks = [merge(parts[:1]), merge(parts[1:]), merge([])]  # the last one has no image
    whole = merge(ranks)
    assert np.array_equal(whole.rows, np.concatenate([rows for rows, _ in before]))
    assert np.array_equal(whole.sums, sum(sums for _, sums in before))
    for part, (rows, sums) in zip(parts, before, strict=True):
        assert np.array_equal(part.rows, rows) and np.array_equal(part.sums, sums)
    # Empty rows keep their columns; without counts there are no sums.
    assert merge([Tally(np.empty((0, 7))), merge([])]).rows.shape == (0, 7)
    assert merge([Tally(np.ones((1, 7)))]).sums is None
