"""Loader processes that raise or are killed: the image is named, and nothing hangs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from detector.data.loading.workers import load
from detector.errors import DataError


class Images:
    """Images of names; index 5 does what ``fault`` says."""

    def __init__(self, fault: str, main: int) -> None:
        self.fault, self.main = fault, main

    def file(self, index: int) -> Path:
        return Path(f"images/{index}.jpg")

    def __getitem__(self, key: tuple[int, int]) -> int:
        if key[1] == 5:
            if self.fault == "raises":
                raise ValueError("in two\nlines")
            assert os.getpid() != self.main
            os.kill(os.getpid(), getattr(signal, self.fault))
            time.sleep(10)
        return key[1]


BATCHES = [[(0, 0), (0, 1)], [(0, 2), (0, 3)], [(0, 4), (0, 5)], [(0, 6), (0, 7)]]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch looks after its workers every five seconds."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.5,))


@pytest.mark.parametrize("fault", ["SIGKILL", "SIGSEGV"])
def test_a_killed_worker_is_named_with_its_image(fault: str) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    read = []
    started = time.monotonic()
    with pytest.raises(DataError, match=r"images/5.jpg: the loader's process \d+ was killed") as error:
        for batch in load(Images(fault, os.getpid()), BATCHES, workers=2, collate=list):
            # torch's own handler would raise here, in the middle of whatever a step does.
            time.sleep(0.2)
            read += batch
    assert "\n" not in str(error.value)
    assert set(read) <= {0, 1, 2, 3}
    assert time.monotonic() - started < 60
    assert signal.getsignal(signal.SIGCHLD) == before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_raises_is_an_error_with_its_file(workers: int) -> None:
    batches = list(load(Images("raises", os.getpid()), BATCHES, workers, collate=list))
    assert batches[:2] == [[0, 1], [2, 3]]
    assert batches[3] == [6, 7]
    assert batches[2][0] == 4
    said = r"images/5.jpg: cannot be loaded: ValueError: in two lines \(test_workers.py:\d+\)"
    with pytest.raises(DataError, match=said):
        raise batches[2][1]
