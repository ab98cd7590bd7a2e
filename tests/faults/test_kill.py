"""SIGKILL anywhere: what was killed and resumed ends as what was not, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import TINY_BACKBONE

from detector.dev import stress
from detector.dev.stress import differences, kill_and_resume


def test_kills_at_each_kind_of_moment_change_nothing(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stress, "COMMON", (*stress.COMMON, TINY_BACKBONE))
    report = kill_and_resume(shapes, tmp_path / "runs", kills=6)
    assert report.differences == []
    assert report.kills.total() == 6
    assert set(report.kills) == {"starting", "stepping", "saving"}

    # The comparison would find a bit, and a step that is duplicated.
    whole, killed = tmp_path / "runs" / "whole", tmp_path / "runs" / "killed_1"
    content = torch.load(killed / "last.pt", weights_only=True)
    name, tensor = next(item for item in content["ema"].items() if item[0].endswith("running_mean"))
    tensor[0] = torch.nextafter(tensor[0], torch.tensor(torch.inf))
    torch.save(content, killed / "last.pt")
    lines = (killed / "metrics.jsonl").read_text().splitlines(keepends=True)
    (killed / "metrics.jsonl").write_text("".join([*lines, lines[-2]]))
    found = list(differences(whole, killed))
    assert found == [
        f"last.pt: ema.{name}",
        f"metrics.jsonl: {len(lines)} and {len(lines) + 1} lines, or other numbers",
    ]
