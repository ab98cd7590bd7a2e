"""Counters and histograms in Prometheus's text form (version 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32)


class Count:
    """A counter for each combination of label values."""

    kind = "counter"

    def __init__(self, *labels: str) -> None:
        self.labels, self.values = labels, Counter[tuple[str, ...]]() if labels else Counter({(): 0})

    def add(self, *values: str) -> None:
        self.values[values] += 1

    def lines(self, name: str) -> list[str]:
        return [f"{name}{_braces(self.labels, values)} {count}" for values, count in sorted(self.values.items())]


class Gauge:
    """A value that is asked for."""

    kind = "gauge"

    def __init__(self, value: Callable[[], float]) -> None:
        self.value = value

    def lines(self, name: str) -> list[str]:
        return [f"{name} {self.value()}"]


class Histogram:
    """How many values were at most each bound, and their sum."""

    kind = "histogram"

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str) -> list[str]:
        found, total = [], 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            found.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*found, f"{name}_sum {self.sum:.6f}", f"{name}_count {total}"]


def as_text(meters: dict[str, tuple[str, Count | Gauge | Histogram]]) -> str:
    """Meters by name, each with its help."""
    lines = []
    for name, (explanation, meter) in meters.items():
        lines += [f"# HELP {name} {explanation}", f"# TYPE {name} {meter.kind}", *meter.lines(name)]
    return "\n".join(lines) + "\n"


def _braces(labels: Sequence[str], values: Sequence[str]) -> str:
    pairs = ",".join(f'{label}="{value}"' for label, value in zip(labels, values, strict=True))
    return f"{{{pairs}}}" if pairs else ""
