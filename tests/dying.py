"""A decoder that dies; apart from its test, as its processes import this module."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np

from detector.inference.decoders import Decode


class Dying(Decode):
    """Dies of an image named ``deadly.jpg``, and once of ``once`` and a path with commas, which it makes."""

    def __call__(self, name: str, data: bytes) -> np.ndarray:
        mark = Path(name.removeprefix("once").replace(",", "/"))
        is_first = name.startswith("once") and not mark.exists()
        if is_first:
            mark.touch()
        if name == "deadly.jpg" or is_first:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(name, data)
