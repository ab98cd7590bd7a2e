"""Is it right on a GPU: the same as on a CPU, without waiting, compiled, resumed, and on two cards."""

from __future__ import annotations

import contextlib
import io
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.testing import assert_close

from detector.checkpoints.checkpoint import read_checkpoint
from detector.config.loader import load_config
from detector.data.synthetic import write_shapes
from detector.dev.benchmark import loss, postprocess, train
from detector.dev.gpu_check.check import SIDE, Check, SkippedError, step_config
from detector.dev.stress import TINY, data_overrides, rows_of
from detector.models import Model, build_model
from detector.ops.assignment import max_iou
from detector.structures import Predictions
from detector.system.processes import child_command, child_environment
from detector.tasks import detection
from detector.training.average import AveragedWeights, SavedBuffers
from detector.training.fitting import fit
from detector.training.run_folder import RunFolder


def small_model(device: str) -> Model:
    torch.manual_seed(0)
    return build_model(load_config("quickstart.yaml").model, 4).place(torch.device(device))


def sixteen_bits(check: Check) -> dict[str, float]:
    """A uint16 batch: the same logits as on a CPU."""
    images = torch.randint(0, 65536, (2, 3, 128, 160), dtype=torch.int32).to(torch.uint16)
    sizes = torch.tensor([[128, 160], [100, 130]])
    outputs = []
    with torch.inference_mode():
        for device in ("cpu", check.device):
            model = small_model(device).eval()
            outputs.append(model(images.to(device), sizes.to(device)).cls_logits.cpu())
    assert_close(outputs[1], outputs[0], rtol=5e-3, atol=5e-3)  # TF32 convolutions
    return {"largest difference": float((outputs[1] - outputs[0]).abs().max())}


def losses_and_gradients(check: Check) -> dict[str, list[float]]:
    """Matching to the bit, losses and gradients to 1e-4, CPU against the device."""
    side, objects = check.settings.side(SIDE), check.settings.scaled(100)
    inputs = [loss.make_inputs(side, side, 2, objects, device) for device in ("cpu", check.device)]
    targets = [
        max_iou(*each.predictions[2:4], each.targets, None, loss.DeltaCoder(), loss.CONFIG.matcher).target.cpu()
        for each in inputs
    ]
    assert torch.equal(*targets), f"{int((targets[0] != targets[1]).sum())} anchors are matched otherwise"
    own, other = (loss.ours(each)() for each in inputs)
    for one, two in zip([*other.losses, *other.gradients], [*own.losses, *own.gradients], strict=True):
        assert_close(one.cpu(), two, rtol=1e-4, atol=1e-4 * float(two.abs().max()))
    return {"losses": [float(part) for part in other.losses]}


def ties(check: Check) -> dict[str, int]:
    """Post-processing of logits in steps of a quarter, so that many scores tie: the same detections as on a CPU."""
    side = check.settings.side(SIDE)
    found = []
    for device in ("cpu", check.device):
        inputs = postprocess.make_inputs(side, side, -4.6, 0.88, "cpu")
        logits = (inputs.predictions.cls_logits * 4).round() / 4
        raw = inputs.predictions._replace(cls_logits=logits)
        moved = Predictions(*(part.to(device) for part in raw[:3]), raw.level_counts)
        batch = inputs.batch.to(torch.device(device))
        with torch.inference_mode():
            found.append(
                [
                    tuple(part.cpu() for part in each)
                    for each in postprocess.to_list(detection.predict(moved, batch, postprocess.CONFIG))
                ]
            )
    assert all(torch.allclose(one[1], two[1], atol=1e-6) for one, two in zip(*found, strict=True)), "scores differ"
    return {"detections": sum(len(each[1]) for each in found[1])}


def precisions(check: Check) -> dict[str, float]:
    """A step in each precision: its loss is that of a CPU in fp32, within the benchmark's tolerances."""
    inputs = train.make_inputs(step_config(check), 80, torch.device("cpu"))
    expected = train.ours(inputs)().loss
    device, found = torch.device(check.device), {}
    for precision, tolerance in train.TOLERANCES.items():
        if precision == "fp16" and not check.is_cuda:
            continue  # takes minutes on a CPU
        own = train.Inputs(step_config(check, f"train.precision={precision}"), inputs.weights, inputs.batch.to(device))
        run = train.ours(own)
        found[precision] = float(run().loss)
        assert abs(found[precision] - expected) <= max(tolerance, 5e-3) * expected, (precision, found, float(expected))
        assert run().loss.isfinite(), f"{precision}: the second step's loss is not finite"
    return found


def waiting(check: Check) -> str:
    """A step, the average and the saved buffers never wait for the GPU."""
    device = torch.device(check.device)
    inputs = train.make_inputs(step_config(check, f"train.precision={check.fast_precision}"), 80, device)
    run, model = train.ours(inputs), small_model(check.device)
    averaged, saved = AveragedWeights(model, 0.9), SavedBuffers(model)
    run()  # the first step makes handles, workspaces and the optimizer's state
    with refuse_to_wait(check):
        run()
        for _ in range(2):
            averaged.update(model)
            saved.save()
        saved.restore()
    return "no wait" if check.is_cuda else "nothing waits on a CPU"


@contextlib.contextmanager
def refuse_to_wait(check: Check) -> Iterator[None]:
    if not check.is_cuda:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def compiled(check: Check) -> dict[str, float]:
    """The compiled network at three shapes: the logits of the eager one."""
    if not check.is_cuda:
        raise SkippedError("the tests compile on a CPU")
    model = small_model(check.device).eval()
    network, gaps = torch.compile(model), {}
    with torch.inference_mode():
        for height, width in ((128, 160), (160, 128), (192, 192)):
            images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, device=check.device)
            sizes = torch.tensor([[height, width]] * 2, device=check.device)
            own, expected = network(images, sizes).cls_logits, model(images, sizes).cls_logits
            assert_close(own, expected, rtol=5e-3, atol=5e-3)
            gaps[f"{height}×{width}"] = float((own - expected).abs().max())
    return gaps


def resuming(check: Check) -> dict[str, int]:
    """Four steps, and two and two: the same bits of weights, average and log, with ``train.deterministic``."""
    with tempfile.TemporaryDirectory(prefix="detector_gpu_check_") as name:
        folder = Path(name)
        write_shapes(folder / "data", train=8, val=2)
        given = [*TINY, *data_overrides(folder / "data"), "data.workers=0", "train.batch_size=2", "data.val=null"]
        given += ["model.matcher.warmup=0"]  # it is a part of a run, and these runs end at different steps
        given += ["train.deterministic=true", "train.schedule={name: multistep, warmup_steps: 0, milestones: [1.0]}"]
        for run, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
            config = load_config("quickstart.yaml", [*given, f"train.steps={steps}"])
            with contextlib.redirect_stderr(io.StringIO()):
                assert fit(config, RunFolder(folder / run), torch.device(check.device), resume=run == "parts")
        rows = [[row | {"images_per_second": 0} for row in rows_of(folder / run)] for run in ("whole", "parts")]
        assert rows[0] == rows[1], "the losses differ"
        one, two = (read_checkpoint(folder / run / "last.pt") for run in ("whole", "parts"))
        for part in ("model", "ema"):
            differing = [key for key, tensor in one[part].items() if not torch.equal(tensor, two[part][key])]
            assert not differing, f"{part}: {len(differing)} tensors differ, such as {differing[0]}"
        return {"tensors": len(one["model"]) + len(one["ema"])}


def two_cards(check: Check) -> dict[str, list[float]]:
    """Two processes over NCCL: the losses of one process."""
    if not check.is_cuda or torch.cuda.device_count() < 2:
        raise SkippedError("there are no two cards")
    with tempfile.TemporaryDirectory(prefix="detector_gpu_check_") as name:
        folder = Path(name)
        write_shapes(folder / "data", train=8, val=2)
        given = ["--config", "quickstart.yaml", "--runs", name, *data_overrides(folder / "data"), "data.workers=0"]
        given += ["model.backbone.norm=sync_bn", "train.batch_size=4", "train.steps=4", "data.val=null"]
        ranks = ["torch.distributed.run", "--nproc-per-node", "2", "--module", "detector", "train", "--name", "two"]
        for module, *arguments in (["detector", "train", "--name", "one"], ranks):
            command = child_command(module, *arguments, *given)
            done = subprocess.run(command, env=child_environment(), capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-2000:]
        losses = [[row["loss"] for row in rows_of(folder / run)] for run in ("one", "two")]
        assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-2, atol=1e-3)
        return {"losses": losses[1]}
