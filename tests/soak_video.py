"""Hours of video in minutes: memory over many small frames, a kill half way, and codecs; not a test.

PYTHONPATH=. python tests/soak_video.py --frames 20000       # docs/BENCHMARKS.md has the figures
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from detector.dev.stress import tiny_checkpoint
from detector.inference.video_folder import CODECS, Drawing


def write_clip(path: Path, frames: int) -> None:
    """A square that wanders over noise, 160×120, 25 per second."""
    background = np.random.default_rng(0).integers(0, 200, (120, 160, 3), dtype=np.uint8)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (160, 120))
    for number in range(frames):
        image = background.copy()
        left, top = number * 3 % 120, number % 80
        image[top : top + 40, left : left + 40] = (0, 0, 255)
        writer.write(image)
    writer.release()


def megabytes(pid: int) -> float:
    """What is resident."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def time_codecs(folder: Path) -> None:
    """How fast drawings of 1,280×720 pixels are written."""
    image = np.random.default_rng(0).integers(0, 255, (40, 64, 3), dtype=np.uint8)
    image = cv2.resize(image, (1280, 720), interpolation=cv2.INTER_CUBIC)
    drawings = [Image.fromarray(cv2.circle(image.copy(), (100 + 5 * n, 300), 60, (255, 0, 0), -1)) for n in range(60)]
    for kind in CODECS:
        drawing = Drawing(folder / f"drawn.{kind}", 25.0)
        began = time.monotonic()
        for number, one in enumerate(drawings):
            drawing.add(one, number / 25)
        drawing.close()
        print(f"{kind}: {len(drawings) / (time.monotonic() - began):.0f} frames per second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--no-images", action="store_true", help="draw nothing")
    args = parser.parse_args()
    frames, drawn = args.frames, ["--no-images"] if args.no_images else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        time_codecs(folder)
        write_clip(folder / "clip.mp4", frames)
        tiny_checkpoint(folder / "tiny.pt")

        def start(output: str, *more: str) -> tuple[subprocess.Popen[bytes], Path]:
            given = ["--checkpoint", str(folder / "tiny.pt"), "--input", str(folder / "clip.mp4"), "--device", "cpu"]
            given += ["--output", str(folder / output), "--video", "mp4", "--draw-score", "0", "--resume", *more]
            given += ["model.predict.score_threshold=0.0", "model.predict.max_detections=3"]
            command = [sys.executable, "-m", "detector", "infer", *given]
            return subprocess.Popen(command), folder / output / "predictions.jsonl"

        began, used = time.monotonic(), dict[int, float]()
        process, lines = start("whole", *drawn)
        while process.poll() is None:
            done = count_lines(lines)
            if done:
                used[done] = megabytes(process.pid)
            time.sleep(0.5)
        seconds = time.monotonic() - began
        at = {tenth: min(used, key=lambda done: abs(done - tenth * frames / 10)) for tenth in (1, 5, 9)}
        print(f"exit code {process.returncode}, {frames / seconds:.0f} frames per second")
        print("MB at " + ", ".join(f"{done:,} frames {used[done]:.0f}" for done in at.values()))
        print(f"most: {max(used.values()):.0f} MB")

        process, killed = start("killed", "--no-images")
        while count_lines(killed) < frames // 2 and process.poll() is None:
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        print(f"killed after {count_lines(killed):,} lines")
        again, _ = start("killed", "--no-images")
        print(f"exit code {again.wait()}; the same bytes: {killed.read_bytes() == lines.read_bytes()}")


if __name__ == "__main__":
    main()
