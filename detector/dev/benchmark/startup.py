"""From launching ``detector train --config quickstart.yaml`` to the end of its first step, imports included."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from detector.data.synthetic import write_shapes
from detector.dev.benchmark.measure import BenchmarkError, Case, Settings
from detector.system.processes import child_command, child_environment

IMAGES = (4_600, 200)  # training and validation images of `detector quickstart`
POLL_SECONDS = 0.01
TIMEOUT_SECONDS = 300


def cases(settings: Settings) -> list[Case]:
    train, val = (settings.scaled(count, least=8) for count in IMAGES)
    return [
        Case(
            name=f"first step of quickstart.yaml, {train:,} + {val:,} images",
            files=lambda folder: write_shapes(folder / "shapes", train, val),
            inputs=lambda folder: folder,
            ours=lambda folder: Launch(folder, settings.device),
            has_memory=False,
        )
    ]


class Launch:
    """A run that trains until ``metrics.jsonl`` has a line."""

    def __init__(self, folder: Path, device: str) -> None:
        data = folder / "shapes"
        self.folder = folder
        self.count = 0
        self.command = child_command("detector", "train", "--config", "quickstart.yaml", "--device", device)
        self.command += [f"data.{split}.images={data / 'images'}" for split in ("train", "val")]
        self.command += [f"data.{split}.annotations={data / 'annotations' / split}.json" for split in ("train", "val")]

    def __call__(self) -> None:
        self.count += 1
        runs, name = self.folder / "runs", f"run{self.count}"
        command = [*self.command, "--runs", str(runs), "--name", name]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, env=child_environment(), **silent)
        metrics, end = runs / name / "metrics.jsonl", time.monotonic() + TIMEOUT_SECONDS
        try:
            while not (metrics.exists() and metrics.read_bytes().endswith(b"\n")):
                if process.poll() is not None or time.monotonic() > end:
                    raise BenchmarkError(f"{' '.join(command)}: did not finish a step; run it to see why")
                time.sleep(POLL_SECONDS)
        finally:
            process.kill()
            process.wait()
