"""Overload a server at length; not a test. docs/RELIABILITY.md has the figures.

PYTHONPATH=. python tests/load_server.py --requests 10000 --clients 64
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from fuzz import mutate, photo
from PIL import Image

from detector.dev.stress import tiny_checkpoint
from detector.inference.predictor import Predictor
from detector.tasks import get_results

SETTINGS = ["model.predict.score_threshold=0.0", "model.predict.max_detections=10"]
SIZES = [(120, 160), (160, 120), (90, 300), (300, 90), (200, 200), (64, 64), (100, 400), (33, 40)]  # height, width
BATCHES = 'detector_batch_images_bucket{le="1"}', "detector_batch_images_count", "detector_batch_images_sum"


def write_images(folder: Path) -> list[Path]:
    paths = []
    for number in range(3 * len(SIZES)):
        image = Image.fromarray(photo(*SIZES[number % len(SIZES)])).rotate(7 * number)
        paths.append(folder / f"{number}{('.jpg', '.png', '.webp')[number % 3]}")
        image.save(paths[-1])
    return paths


def ask(port: int, data: bytes) -> tuple[int, bytes]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
        connection.request("POST", "/predict", data)
        response = connection.getresponse()
        return response.status, response.read()


def descendants(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [int(one) for task in tasks for one in (task / "children").read_text().split()]
    return [pid, *(one for child in children for one in descendants(child))]


def memory(pid: int) -> float:
    """MB of the server and its processes; what they share counts once."""
    rollups = [Path(f"/proc/{one}/smaps_rollup").read_text() for one in descendants(pid)]
    return sum(int(text.split("Pss:")[1].split()[0]) for text in rollups) / 1000


def is_same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> bool:
    """Up to the last digit, which a batch of another size may round differently."""
    return len(found) == len(wanted) and all(
        own["category_id"] == its["category_id"]
        and abs(own["score"] - its["score"]) < 2.1e-5
        and all(abs(one - other) < 0.021 for one, other in zip(own["bbox"], its["bbox"], strict=True))
        for own, its in zip(found, wanted, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=64)
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint, paths = tiny_checkpoint(folder / "tiny.pt"), write_images(folder)
        predictor = Predictor.from_checkpoint(checkpoint, "cpu", SETTINGS)
        found = predictor.predict(paths, batch_size=1)
        to_results = get_results("detection").to_results
        wanted = [to_results(one, 1, Path("image")) for one in found]
        command = [sys.executable, "-m", "detector", "serve", "--checkpoint", str(checkpoint), "--port", "0", *SETTINGS]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            overload(process, [path.read_bytes() for path in paths], wanted, args.requests, args.clients)
        finally:
            process.kill()


def overload(
    process: subprocess.Popen[str], images: list[bytes], wanted: list[list[dict[str, Any]]], requests: int, clients: int
) -> None:
    port = int(process.stdout.readline().split(":")[-1])
    outcomes: Counter[str] = Counter()

    def one(number: int) -> None:
        status, body = ask(port, images[number % len(images)])
        rows = json.loads(body)
        if status != 200:
            outcomes[str(status)] += 1
        elif rows == wanted[number % len(images)]:
            outcomes["equal"] += 1
        else:
            outcomes["equal up to the last digit" if is_same(rows, wanted[number % len(images)]) else "wrong"] += 1

    def send(count: int, threads: int, work: Callable[[int], None] = one) -> str:
        outcomes.clear()
        started = time.monotonic()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, random.Random(0).choices(range(10**6), k=count)))
        return f"{time.monotonic() - started:.0f} s, {dict(outcomes)}"

    print(f"{requests // 10} requests: {send(requests // 10, clients)}")
    before = memory(process.pid)
    print(f"{requests} requests from {clients} clients: {send(requests, clients)}")
    after = memory(process.pid)
    print(
        f"memory {before:.1f} MB, then {after:.1f} MB ({after / before - 1:+.1%}); descriptors {descriptors(process)}"
    )
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        print("; ".join(line for line in text.splitlines() if line.startswith(BATCHES)))

    def damaged(number: int) -> None:
        status, body = ask(port, mutate(images[number % len(images)], random.Random(number)))
        outcomes[str(status)] += 1
        assert status == 200 or "\n" not in json.loads(body)["error"]

    print(f"{requests // 10} damaged images: {send(requests // 10, 8, damaged)}")
    print(f"{requests // 10} requests from {4 * clients} clients: {send(requests // 10, 4 * clients)}")

    done = threading.Event()
    kills = 0

    def kill_decoders() -> None:
        nonlocal kills
        while not done.wait(0.25):
            children = descendants(process.pid)[1:]
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(random.choice(children[-2:]), signal.SIGKILL)
                kills += 1

    killer = threading.Thread(target=kill_decoders)
    killer.start()
    print(f"{requests // 10} requests while decoders are killed: {send(requests // 10, 8)}", end="; ")
    done.set()
    killer.join()
    print(f"{kills} kills")
    print(f"afterwards: {send(100, 8)}; memory {memory(process.pid):.1f} MB; descriptors {descriptors(process)}")
    process.send_signal(signal.SIGTERM)
    print(f"exit code {process.wait(60)}")


def descriptors(process: subprocess.Popen[str]) -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


if __name__ == "__main__":
    main()
