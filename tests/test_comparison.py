"""Several seeds of a config: figures by hand, and two runs that are stopped and continued."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from networks import TINY, TINY_BACKBONE

from detector.__main__ import main
from detector.dev import stress
from detector.models.backbones import BACKBONES
from detector.training import comparison
from detector.training.comparison import as_text, spreads


def test_mean_and_deviation_by_hand() -> None:
    # Mean 0.5; the deviation of a sample of three is sqrt((0.01 + 0 + 0.01) / 2) = 0.1.
    found = spreads(
        {0: {"AP": 0.4, "x": 0.1, "dropped": 3}, 1: {"AP": 0.5, "dropped": 4}, 2: {"AP": 0.6, "dropped": 0}}
    )
    assert list(found) == ["AP"]
    assert found["AP"].mean == pytest.approx(0.5)
    assert found["AP"].deviation == pytest.approx(0.1)
    one = spreads({0: {"AP": 0.25, "AP50": 0.5}})
    assert as_text({"a": found, "b": one}).splitlines() == [
        "metric  a              b",
        "AP      0.500 ± 0.100  0.250",
        "AP50    –              0.500",
    ]


def test_seeds_with_nothing_to_score_are_left_out() -> None:
    found = spreads({0: {"APs": 0.2, "APl": -1.0}, 1: {"APs": -1.0, "APl": -1.0}, 2: {"APs": 0.4, "APl": -1.0}})
    assert found["APs"].values == [0.2, None, 0.4]
    assert found["APs"].mean == pytest.approx(0.3)
    assert found["APs"].deviation == pytest.approx(0.02**0.5)  # sqrt(0.01 + 0.01)
    assert as_text({"a": found}).splitlines() == ["metric  a", "APs     0.300 ± 0.141 (2 of 3 seeds)", "APl     –"]


def test_runs_are_done_once_and_only_by_one_config(
    tmp_path: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(BACKBONES, "tiny", TINY)
    data = stress.data_overrides(shapes)
    given = ["--seeds", "2", "--runs", str(tmp_path), "--device", "cpu", "--json"]
    overrides = [*stress.TINY, *data, TINY_BACKBONE, "train.steps=1", "data.workers=0"]
    real, trained = comparison.fit, []

    def fit(config, run, *arguments, **options):
        trained.append((config.seed, run.path.name))
        return len(trained) != 2 and real(config, run, *arguments, **options)  # the second is stopped

    monkeypatch.setattr(comparison, "fit", fit)
    command = ["compare", "--config", "quickstart.yaml", *given, *overrides]
    assert main(command) == 75
    assert main(command) == 0
    assert trained == [(0, "quickstart_seed0"), (1, "quickstart_seed1"), (1, "quickstart_seed1")]
    spread = json.loads(capsys.readouterr().out)["configs"]["quickstart"]["AP"]
    best = [torch.load(tmp_path / f"quickstart_seed{seed}" / "best.pt")["metrics"]["AP"] for seed in (0, 1)]
    assert spread["values"] == best
    assert main([*command, "seed=7"]) == 2
    assert "say how many with --seeds" in capsys.readouterr().err
    assert main([*command, "train.clip_norm=3"]) == 2
    assert "train.clip_norm was" in capsys.readouterr().err
    assert len(trained) == 3
