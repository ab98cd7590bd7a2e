"""How OpenMP's threads wait: as commands set it, against torch's default (alone) or sleeping (beside a busy process).

Each side is in processes of its own, as torch reads the settings when it is loaded. Equal processes differ by up to a
fifth in speed, so alone each side has several, which take turns; beside a busy process, whose presence a process would
forget until its turn, it has one. ``GOMP_SPINCOUNT=1000 detector benchmark waiting`` measures a fixed number of rounds.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import torch

from detector.config.loader import load_config
from detector.dev.benchmark.measure import BenchmarkError, Case, Settings
from detector.models import build_model
from detector.structures import PADDING, Targets
from detector.system.processes import WAIT_POLICIES, child_command, child_environment, prepare_command
from detector.tasks import detection

CONFIG, CLASSES, SIDE, BATCH, OBJECTS = "quickstart.yaml", 4, 128, 4, 8
REPEATS = {"train": 2, "infer": 5}  # steps or batches per run
# case -> how the other side waits, and the number of processes of each side
COMPANY = {"alone": ({}, 5), "beside a busy process": ({"OMP_WAIT_POLICY": "PASSIVE"}, 1)}


def cases(settings: Settings) -> list[Case]:
    side = str(settings.side(SIDE))

    def case(work: str, company: str) -> Case:
        waiting, count = COMPANY[company]

        def inputs(_folder: Path) -> list[Process]:
            return [] if company == "alone" else [Process(child_environment(), "as-torch", "busy")]

        def ours(_busy: list[Process]) -> Callable[[], None]:
            return in_turns(count, child_environment(), "as-commands", work, side)

        def theirs(_busy: list[Process]) -> Callable[[], None]:
            unset = {key: value for key, value in child_environment().items() if key not in WAIT_POLICIES}
            return in_turns(count, unset | waiting, "as-torch", work, side)

        return Case(
            name=f"{work}, {company}",
            inputs=inputs,
            ours=ours,
            theirs=theirs,
            images=BATCH * REPEATS[work],
            runs=20,
            has_memory=False,
        )

    return [case(work, company) for work, company in itertools.product(REPEATS, COMPANY)]


def in_turns(count: int, environment: dict[str, str], *arguments: str) -> Callable[[], None]:
    """Start processes, each of which does its work at one call of several."""
    processes = itertools.cycle([Process(environment, *arguments) for _ in range(count)])
    return lambda: next(processes)()


class Process:
    """A process that does its work at each call, or one that is always busy; it ends with this object."""

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        command = child_command("detector.dev.benchmark.waiting", *arguments)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)
        weakref.finalize(self, self.process.kill)
        self._wait()

    def __call__(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self._wait()

    def _wait(self) -> None:
        if not self.process.stdout.readline():
            raise BenchmarkError("a measured process has ended")


def main(waiting: str, work: str, side: str = "") -> None:
    """Print a line when ready, and one after each run, which a line on stdin starts."""
    if waiting == "as-commands":
        prepare_command()
    run = {"train": trainer, "infer": predictor}[work](int(side)) if side else None
    if run:
        run()  # a warm-up
    print(flush=True)
    while run is None:
        pass
    for _ in sys.stdin:
        run()
        print(flush=True)


def trainer(side: int) -> Callable[[], None]:
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    config = load_config(CONFIG).model
    model = build_model(config, CLASSES).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    images = torch.randint(0, 256, (BATCH, 3, side, side), dtype=torch.uint8).to(memory_format=torch.channels_last)
    sizes = torch.full((BATCH, 2), side)
    corners = torch.rand(BATCH, OBJECTS, 2) * side / 2
    labels = torch.randint(0, CLASSES, (BATCH, OBJECTS))
    labels[0, OBJECTS // 2 :] = PADDING
    targets = Targets(torch.cat([corners, corners + side / 4], dim=-1), labels)

    def run() -> None:
        for _ in range(REPEATS["train"]):
            losses = detection.loss(model(images, sizes), targets, config)
            (sum(losses.parts.values()) / losses.normaliser.clamp(min=1)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return run


def predictor(side: int) -> Callable[[], None]:
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    model = build_model(load_config(CONFIG).model, CLASSES).to(memory_format=torch.channels_last).eval().fold_norms()
    images = torch.randint(0, 256, (BATCH, 3, side, side), dtype=torch.uint8).to(memory_format=torch.channels_last)
    sizes = torch.full((BATCH, 2), side)

    @torch.inference_mode()
    def run() -> None:
        for _ in range(REPEATS["infer"]):
            model(images, sizes)

    return run


if __name__ == "__main__":
    main(*sys.argv[1:])
