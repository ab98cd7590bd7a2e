"""What commands do on a GPU, as far as a CPU can tell: refusals, settings of the process, and running out of memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import TINY, TINY_BACKBONE

from detector.config.loader import load_config
from detector.config.schema import Config, TrainConfig
from detector.dev.stress import TINY as TINY_RUN
from detector.dev.stress import data_overrides, rows_of
from detector.errors import ConfigError, GpuMemoryError
from detector.models import build_model
from detector.models.backbones import BACKBONES
from detector.models.precision import check_precision, explain_nondeterministic, prepare_gpu
from detector.structures import Batch
from detector.tasks import detection
from detector.training import fitting
from detector.training.batch_size import largest_that_fits
from detector.training.fitting import fit
from detector.training.loop import predict_batch
from detector.training.run_folder import RunFolder

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def settings() -> tuple[bool, str, bool, bool]:
    return (
        torch.backends.cudnn.allow_tf32,
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
    )


def test_the_settings_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before = settings()
    try:
        prepare_gpu(TrainConfig(tf32="everything", deterministic=True), True, CPU)
        assert settings() == before  # a CPU has one way
        prepare_gpu(TrainConfig(), False, CUDA)
        assert settings() == before == (True, "highest", False, False)  # PyTorch's
        prepare_gpu(TrainConfig(tf32="everything"), True, CUDA)
        assert settings() == (True, "high", True, False)
        prepare_gpu(TrainConfig(tf32="nothing", deterministic=True), True, CUDA)
        assert settings() == (False, "highest", False, True)
    finally:
        prepare_gpu(TrainConfig(), False, CUDA)


def test_what_has_no_deterministic_form_is_one_line() -> None:
    message = (
        "max_pool_backward does not have a deterministic implementation, but you set 'torch.use_deterministic_...'"
    )
    refused = pytest.raises(ConfigError, match=r"^train\.deterministic: max_pool_backward does not have a [^']*$")
    with refused, explain_nondeterministic():
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match="another"), explain_nondeterministic():
        raise RuntimeError("another")


def test_a_card_without_bf16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(ConfigError, match=r"^train\.precision: Tesla T4 has no bf16; use fp16 or fp32$"):
        check_precision("bf16", CUDA, "train.precision")


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Six steps of two images, saved at each."""
    monkeypatch.setitem(BACKBONES, "tiny", TINY)
    steps = ["train.steps=6", "train.batch_size=2", "train.checkpoint_steps=1", "eval.every_epochs=9"]
    plain = ["data.augment={}", "data.resize={fixed: [64, 64]}", "data.workers=0", TINY_BACKBONE]
    return load_config("quickstart.yaml", [*TINY_RUN, *data_overrides(shapes), *steps, *plain])


def test_too_little_memory_in_a_step(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, loss = [], detection.loss

    def run_out(*args: object) -> object:
        calls.append(args)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return loss(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(detection, "loss", run_out)
    line = "a batch of 2 images of 64×64: the GPU has too little memory; lower train.batch_size or data.resize, or"
    with pytest.raises(GpuMemoryError, match=f"^{re.escape(line)}"):
        fit(config, RunFolder(tmp_path / "run"), CPU)
    assert fit(config, RunFolder(tmp_path / "run"), CPU, resume=True)
    assert [row["step"] for row in rows_of(tmp_path / "run") if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert len(calls) == 4 + 3  # three steps had been saved


def test_too_little_memory_in_an_evaluation(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(detection, "predict", run_out)
    sizes = torch.full((1, 2), 64)
    batch = Batch(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), sizes, sizes, None, torch.zeros(1))
    model = build_model(config.model, 2).eval()
    with pytest.raises(GpuMemoryError, match=r"^a batch of 1 image of 64×64: .* lower eval\.batch_size"):
        predict_batch(model, detection, batch, config)


@pytest.mark.parametrize("most", [0, 1, 2, 3, 7, 8, 100, 1023, 1024, 5000])
def test_the_largest_number_that_fits(most: int) -> None:
    tried: list[int] = []

    def fit(count: int) -> bool:
        tried.append(count)
        return count <= most

    assert largest_that_fits(fit) == min(most, 1024)
    assert len(tried) == len(set(tried)) <= 21
    assert max(tried) <= max(2 * most, 1)  # doubling: nothing far too large is tried


def test_the_batch_size_that_fits_becomes_the_runs(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A GPU for eleven images: nine are taken, a tenth less."""
    auto = Config.model_validate(config.model_dump() | {"train": config.train.model_dump() | {"batch_size": "auto"}})
    with pytest.raises(ConfigError, match=r"^train\.batch_size: auto fills a GPU's memory, and there is none here"):
        fit(auto, RunFolder(tmp_path / "run"), CPU)
    loss, tried = detection.loss, []

    def limited(output: Any, targets: Any, model: Any, progress: float = 0.0) -> Any:
        tried.append(len(targets.boxes))
        if len(targets.boxes) > 11:
            raise torch.OutOfMemoryError
        return loss(output, targets, model)

    monkeypatch.setattr(detection, "loss", limited)
    monkeypatch.setattr(fitting, "check_run", lambda *_: None)
    assert fit(auto, RunFolder(tmp_path / "run"), CPU)
    assert tried[:10] == [1, 1, 2, 2, 4, 4, 8, 8, 16, 12]
    assert tried[10:16] == [10, 10, 11, 11, 9, 9]  # then the steps of the run
    assert "train.batch_size: 9 fit into the GPU's memory" in capsys.readouterr().err
    assert "batch_size: 9" in (tmp_path / "run" / "config.yaml").read_text()
    # It resumes with that number, and tries nothing.
    tried.clear()
    longer = Config.model_validate(auto.model_dump() | {"train": auto.train.model_dump() | {"steps": 7}})
    assert fit(longer, RunFolder(tmp_path / "run"), CPU, resume=True)
    assert tried == [9]
