"""Run the parts of the check.

Each part runs in a process of its own, from a fork server that has imported torch and has not touched the GPU: a part
that fails, hangs or breaks the GPU's context leaves the others alone.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from detector.dev.gpu_check import correctness, times
from detector.dev.gpu_check.check import Check, SkippedError
from detector.system.processes import end_with_parent

PART_SECONDS = 150  # before a part counts as hanging

_servers = multiprocessing.get_context("forkserver")


class Outcome(NamedTuple):
    """Of one part, as the JSON file has it."""

    part: str
    status: str  # passed, failed, skipped
    seconds: float
    detail: str  # why it failed or was skipped
    found: Any = None


def run_parts(check: Check, names: list[str], minutes: float) -> Iterator[Outcome]:
    """The outcome of each part, in order; parts that no time is left for are skipped."""
    end = time.monotonic() + 60 * minutes
    for name in names:
        left = end - time.monotonic()
        yield (
            run_apart(check, name, min(PART_SECONDS, left)) if left > 5 else Outcome(name, "skipped", 0, "out of time")
        )


def run_apart(check: Check, name: str, seconds: float) -> Outcome:
    """The outcome of a part in a process of its own."""
    _servers.set_forkserver_preload([__name__])
    started = time.monotonic()
    receiver, sender = _servers.Pipe(duplex=False)
    process = _servers.Process(target=_serve, args=(check, PARTS[name], sender))
    process.start()
    sender.close()
    status, detail, found = "failed", f"hangs: not done in {seconds:.0f} s", None
    if receiver.poll(seconds):
        try:
            status, detail, found = receiver.recv()
        except EOFError:
            process.join()
            detail = f"its process ended with {process.exitcode}"
    process.kill()
    process.join()
    return Outcome(name, status, round(time.monotonic() - started, 1), detail, found)


def _serve(check: Check, part: Part, sender: Connection) -> None:
    end_with_parent()
    sender.send(try_part(check, part))


def try_part(check: Check, part: Part) -> tuple[str, str, Any]:
    """Status, detail and what was found of a part in this process."""
    torch.set_flush_denormal(True)
    try:
        return "passed", "", part(check)
    except SkippedError as reason:
        return "skipped", str(reason), None
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split())[:300]
        return "failed", f"{type(error).__name__}: {text} ({Path(place.filename).name}:{place.lineno})", None


Part = Callable[[Check], Any]

PARTS: dict[str, Part] = {
    "uint16": correctness.sixteen_bits,
    "loss": correctness.losses_and_gradients,
    "ties": correctness.ties,
    "precisions": correctness.precisions,
    "waiting": correctness.waiting,
    "compile": correctness.compiled,
    "resume": correctness.resuming,
    "nccl": correctness.two_cards,
    "train x50": times.train_fast,
    "train r50": times.train_plain,
    "whole run": times.whole_run,
    "infer r50": times.inference,
    "postprocess": times.post_processing,
    "loss times": times.loss_alone,
    "profile": times.profile,
}
