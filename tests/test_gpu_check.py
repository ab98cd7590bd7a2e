"""``detector gpu-check`` on a CPU, at tiny size: its parts pass, and one that fails leaves the others alone."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import TINY, TINY_BACKBONE

from detector.__main__ import main
from detector.dev.gpu_check import correctness
from detector.dev.gpu_check.check import Check
from detector.dev.gpu_check.runner import PARTS, run_apart, try_part
from detector.models.backbones import BACKBONES
from detector.ops.assignment import max_iou

TRIAL = Check("cpu", 0.1)
# Of the others, two are skipped on a CPU, and two train and infer ResNets beside torchvision's, which takes long.
SHORT = ["uint16", "loss", "ties", "waiting", "postprocess", "loss times"]


@pytest.mark.parametrize("name", SHORT)
def test_a_part_passes(name: str) -> None:
    status, detail, found = try_part(TRIAL, PARTS[name])
    assert (status, detail) == ("passed", "")
    assert found
    if isinstance(found, list):
        assert all(row["ours_ms"] > 0 and row["equal"] for row in found)


@pytest.mark.parametrize("name", ["compile", "nccl"])
def test_a_part_that_needs_a_gpu_is_skipped(name: str) -> None:
    assert try_part(TRIAL, PARTS[name])[0] == "skipped"


def test_resuming_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "tiny", TINY)
    monkeypatch.setattr(correctness, "TINY", [*correctness.TINY, TINY_BACKBONE])
    status, detail, found = try_part(TRIAL, PARTS["resume"])
    assert (status, detail) == ("passed", "")
    assert found["tensors"] > 100


def test_a_wrong_match_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def second_is_wrong(*args: Any) -> Any:
        assignment = max_iou(*args)
        calls.append(args)
        return assignment._replace(target=assignment.target.roll(1)) if len(calls) == 2 else assignment

    monkeypatch.setattr(correctness, "max_iou", second_is_wrong)
    status, detail, _ = try_part(TRIAL, PARTS["loss"])
    assert status == "failed"
    assert "anchors are matched otherwise" in detail


def end(_check: Check) -> None:
    os._exit(7)


def hang(_check: Check) -> None:
    time.sleep(100)


def test_a_part_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARTS, "loss", hang)
    outcome = run_apart(TRIAL, "loss", 2)
    assert (outcome.status, outcome.detail) == ("failed", "hangs: not done in 2 s")


def test_a_part_that_dies_leaves_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PARTS, "loss", end)
    report = tmp_path / "gpu.json"
    parts = ["--device", "cpu", "--scale", "0.1", "--parts", "loss", "ties", "nccl"]
    assert main(["gpu-check", str(report), *parts]) == 1
    content = json.loads(report.read_text())
    assert [(part["part"], part["status"], part["detail"]) for part in content["parts"]] == [
        ("loss", "failed", "its process ended with 7"),
        ("ties", "passed", ""),
        ("nccl", "skipped", "there are no two cards"),
    ]
    assert content["environment"]["torch"] == torch.__version__
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["loss", "failed"], ["ties", "passed"], ["nccl", "skipped"]]


def test_bad_arguments_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        ([str(tmp_path)], "give a JSON file in a folder that exists"),
        ([str(tmp_path / "a.json")], "there is no GPU here; --device cpu --scale 0.1 tries the check without one"),
        ([str(tmp_path / "a.json"), "--device", "cpu", "--parts", "tie"], "tie: no such part; use uint16,"),
        ([str(tmp_path / "a.json"), "--scale", "2"], "--scale 2.0: must be over 0"),
    ):
        assert main(["gpu-check", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert list(tmp_path.iterdir()) == []
    assert "ties" in PARTS
