"""The benchmark: turns, medians and ratios by hand-made sides; memory of a known size; the parts at a small scale.

Nothing here depends on how long anything takes.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch

from detector.__main__ import run_command
from detector.data.formats.reading import read_annotations
from detector.dev.benchmark import (
    PARTS,
    doctor,
    generate,
    growth,
    infer,
    loss,
    measure,
    plain_finetuning,
    report,
    segment,
    startup,
    tiles,
    train,
    waiting,
)
from detector.dev.benchmark import data as data_part
from detector.dev.benchmark.measure import BenchmarkError, Case, Memory, Row, Settings, measure_case, measure_time
from detector.dev.benchmark.peer import same_detections
from detector.ops.assignment import max_iou
from detector.structures import Assignment
from detector.system.processes import child_environment

FIELDS = ["part", "case", "ours_seconds", "theirs_seconds", "time_ratio", "ours_peak_mb", "theirs_peak_mb"]
FIELDS += ["memory_ratio", "outputs_equal"]
SMALL = Settings(scale=0.1, runs=1)


# --- time -------------------------------------------------------------------------------------------------------------


class Clock:
    """Stands in for the real one; a side that takes n seconds moves it by n."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.log: list[str] = []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def side(self, name: str, seconds: list[float]) -> Callable[[Any], measure.Run]:
        left = iter(seconds)

        def run() -> str:
            self.log.append(name)
            self.now += next(left)
            return f"{name}{len(self.log)}"

        return lambda _inputs: run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def by_hand(clock: Clock, is_equal: bool = True, **changes: Any) -> Case:
    case = Case(
        name="by hand",
        inputs=lambda _folder: None,
        ours=clock.side("o", [100, 5, 1, 3, 2, 4]),
        theirs=clock.side("t", [100, 20, 10, 10, 10, 40]),
        equal=lambda _inputs, ours, theirs: is_equal and (ours, theirs) == ("o1", "t2"),
        images=6,
        cores=2,
    )
    return replace(case, **changes)


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory without a process: ours 50 MB at the peak, theirs 200."""
    peaks = {"ours": Memory(50.0, 5.0), "theirs": Memory(200.0, 20.0)}
    monkeypatch.setattr(measure, "measure_memory", lambda _module, _case, side, *_rest: peaks[side])


def test_sides_take_turns_and_the_first_run_warms_up(clock: Clock, tmp_path: Path) -> None:
    timing = measure_time(by_hand(clock), Settings(), tmp_path)
    assert "".join(clock.log) == "ot" * 6
    assert timing.ours == [5, 1, 3, 2, 4]
    assert timing.theirs == [20, 10, 10, 10, 40]
    assert timing.outputs_equal is True  # of o1 and t2, which the first turn gave


def test_a_slow_side_runs_once(clock: Clock, tmp_path: Path) -> None:
    timing = measure_time(by_hand(clock, slow=True), Settings(runs=3), tmp_path)
    assert "".join(clock.log) == "otoo"
    assert (timing.ours, timing.theirs) == ([100, 5, 1], [100])
    assert timing.outputs_equal is True


def test_a_row_by_hand(clock: Clock, no_child: None, tmp_path: Path) -> None:
    row = measure_case("part", "module", by_hand(clock), Settings(), tmp_path)
    assert (row.ours_seconds, row.theirs_seconds) == (3, 10)  # of 1 2 3 4 5 and 10 10 10 20 40
    assert row.time_ratio == pytest.approx(0.3)
    assert (row.ours_spread, row.theirs_spread) == ((2, 4), (10, 20))
    assert (row.ours_peak_mb, row.theirs_peak_mb, row.memory_ratio) == (50, 200, 0.25)
    assert (row.ours_held_mb, row.theirs_held_mb) == (5, 20)
    assert (row.ours_images_per_second, row.theirs_images_per_second) == (2, pytest.approx(0.6))  # 6 in 3 and in 10 s
    assert row.ours_images_per_second_per_core == 1
    assert (row.outputs_equal, row.runs) == (True, 5)


def test_no_ratio_where_outputs_differ(clock: Clock, no_child: None, tmp_path: Path) -> None:
    row = measure_case("part", "module", by_hand(clock, is_equal=False), Settings(), tmp_path)
    assert (row.time_ratio, row.memory_ratio, row.outputs_equal) == (None, None, False)
    assert (row.ours_seconds, row.theirs_seconds) == (3, 10)


@pytest.mark.parametrize("is_alone", [True, False])
def test_one_side_alone(clock: Clock, no_child: None, tmp_path: Path, is_alone: bool) -> None:
    """Against nothing, nothing is equal; a case without another side has something else to be equal to."""
    case = by_hand(clock) if is_alone else by_hand(clock, theirs=None, equal=lambda _inputs, ours, _none: ours == "o1")
    row = measure_case("part", "module", case, Settings(against=not is_alone), tmp_path)
    assert set(clock.log) == {"o"}
    assert row.outputs_equal is (None if is_alone else True)
    assert (row.theirs_seconds, row.time_ratio, row.theirs_peak_mb, row.memory_ratio) == (None,) * 4


# --- memory -----------------------------------------------------------------------------------------------------------

ALLOCATES = """
import numpy as np
from detector.dev.benchmark.measure import Case

def build(inputs):
    own = np.ones(20_000_000, dtype=np.uint8)  # a model, so to speak: counted
    def run():
        np.ones(100_000_000, dtype=np.uint8)
        return own, np.ones(30_000_000, dtype=np.uint8)
    return run

def cases(settings):
    assert settings.scale == 0.5
    return [Case("known", lambda folder: np.ones(200_000_000, dtype=np.uint8), build)]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the resident set's peak is set back by /proc")
def test_memory_of_a_known_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "allocates.py").write_text(ALLOCATES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    memory = measure.measure_memory("allocates", "known", "ours", Settings(scale=0.5), tmp_path)
    # 20 + 100 at the peak; 20 + 30 at the end. The inputs' 200 were there before. A page more or less is not a fault.
    assert memory == Memory(pytest.approx(120, abs=8), pytest.approx(50, abs=8))


def test_a_process_that_dies_leaves_memory_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert measure.measure_memory("x", "a case", "theirs", SMALL, tmp_path) == Memory(None, None)
    assert "a case: the process that measures the memory of theirs ended with 1" in capsys.readouterr().err


# --- the command ------------------------------------------------------------------------------------------------------


def test_json_has_the_promised_fields(no_child: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("benchmark", ["postprocess", "--scale", "0.08", "--runs", "1", "--json", "--device", "cpu"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 3
    for row in rows:
        assert set(FIELDS) <= row.keys()
        assert (row["part"], row["outputs_equal"], row["memory_ratio"]) == ("postprocess", True, 0.25)
        assert row["time_ratio"] == pytest.approx(row["ours_seconds"] / row["theirs_seconds"])


def test_different_outputs_are_said_and_make_the_exit_code(
    clock: Clock, no_child: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "find_cases", lambda *_: [by_hand(clock, is_equal=False)])
    assert run_command("benchmark", ["loss", "--device", "cpu"]) == 1
    out, err = capsys.readouterr()
    line = next(line for line in out.splitlines() if line.startswith("by hand"))
    assert line.split("   ")[-1].strip() == "NO"
    assert "0.3" not in line
    assert "loss: by hand: outputs differ, so there is no ratio" in err


MISTAKES = {
    "unknown part": (["los"], ["los: no such part", "loss", "all"]),
    "no data": (["data", "--data", "nowhere"], ["nowhere/annotations/train.json", "--synthetic"]),
    "no data for all": (["all", "--data", "nowhere"], ["nowhere/annotations/train.json"]),
    "data twice": (["data", "--data", "x", "--synthetic"], ["--data or --synthetic"]),
    "config without effect": (["eval", "--config", "quickstart.yaml"], ["--config has no effect on eval"]),
    "override without effect": (["loss", "train.batch_size=4"], ["train.batch_size=4 has no effect on loss"]),
    "no runs": (["loss", "--runs", "0"], ["--runs: '0'"]),
    "scale": (["loss", "--scale", "2"], ["--scale 2"]),
    "unknown key": (["train", "train.batch=4"], ["train.batch: unknown key"]),
    "unknown config": (["train", "--config", "quickstar.yaml"], ["did you mean quickstart.yaml"]),
    "not torchvision's": (["train", "--config", "retinanet_r50_fpn_p2.yaml"], ["model.fpn.levels"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, no_child: None, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, said = MISTAKES[mistake]
    assert run_command("benchmark", [*arguments, "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert out == ""
    for words in said:
        assert words in errors[0]


# --- the parts --------------------------------------------------------------------------------------------------------


def check(case: Case, folder: Path, settings: Settings = SMALL) -> tuple[Any, Any, Any]:
    """Files, inputs and the outputs of both sides, which must be equal."""
    if case.files:
        case.files(folder)
    inputs = case.inputs(folder)
    own, other = case.ours(inputs)(), case.theirs(inputs)() if case.theirs else None
    assert case.equal(inputs, own, other)
    return inputs, own, other


def test_every_part_is_a_module_with_cases() -> None:
    for part in PARTS:
        names = [case.name for case in measure.find_cases(f"detector.dev.benchmark.{part}", Settings())]
        assert names
        assert len(names) == len(set(names))  # the process that measures memory finds its case by its name


def test_the_loss_is_torchvisions(tmp_path: Path) -> None:
    few, many, most, *_ = loss.cases(SMALL)
    assert (few.theirs, most.theirs) == (loss.theirs, None)
    for case in (few, many):
        inputs, own, other = check(case, tmp_path)
        assert own.losses[1] > 0
        assert not loss.equal(inputs, own._replace(losses=[own.losses[0] * 1.001, own.losses[1]]), other)
        assert not loss.equal(inputs, own._replace(gradients=[own.gradients[0] * 1.001, own.gradients[1]]), other)


def test_the_match_of_many_objects_is_the_dense_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = loss.cases(SMALL)[2]
    inputs, own, _ = check(case, tmp_path)
    assert inputs.targets.boxes.shape == (1, 1000, 4)

    def other_by_one(*arguments: Any) -> Assignment:
        found = max_iou(*arguments)
        found.target[0, found.target[0].argmax()] = 0
        return found

    monkeypatch.setattr(loss, "max_iou", other_by_one)
    assert not case.equal(inputs, own, None)


def test_the_page_of_an_evaluation_has_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [case] = report.cases(replace(SMALL, scale=0.01))
    _, page, _ = check(case, tmp_path)
    assert page.read_bytes().count(b"data:image/jpeg") == 24
    monkeypatch.setattr(report, "MOST_BYTES", page.stat().st_size - 1)
    assert not case.equal(None, page, None)


def test_the_doctor_decodes_every_image(tmp_path: Path) -> None:
    [case] = doctor.cases(SMALL)
    files, own, other = check(case, tmp_path)
    assert len(files) == len(own) == other
    files[0].write_bytes(files[0].read_bytes()[:100])
    assert case.theirs(files)() == 0
    assert not case.equal(files, case.ours(files)(), other)


def test_boxes_of_tiles_are_merged_alike(tmp_path: Path) -> None:
    case = tiles.cases(SMALL)[0]
    inputs, own, other = check(case, tmp_path)
    assert 0 < len(own) < len(inputs.boxes)
    assert not case.equal(inputs, own[::-1], other)


def test_annotations_are_loaded_alike(tmp_path: Path) -> None:
    cases = growth.cases(replace(SMALL, scale=0.01))
    loading = [case for case in cases if case.name.startswith("loading")]
    assert [case.name for case in loading][-1] == "loading 1,000 images, 10,000 boxes"
    _, own, other = check(loading[0], tmp_path)
    other.anns[1]["bbox"][0] += 1
    assert not loading[0].equal(tmp_path, own, other)


def test_both_evaluations_give_the_same_numbers(tmp_path: Path) -> None:
    [case] = measure.find_cases("detector.dev.benchmark.eval", replace(SMALL, scale=0.004))
    _, own, other = check(case, tmp_path)
    assert 0.05 < own["AP"] < 0.95  # neither all found nor nothing
    assert not case.equal(None, own | {"ARl": own["ARl"] + 1e-6}, other)


def test_batches_hold_the_same_images(tmp_path: Path) -> None:
    [case] = data_part.cases(replace(SMALL, scale=0.1))
    inputs, own, other = check(case, tmp_path)
    assert own.images == case.images == 12  # 10 images in batches of 4, the last one filled up
    assert inputs.data.is_wide.mean() == 0.5
    first = own.first
    moved = first._replace(targets=first.targets._replace(boxes=first.targets.boxes + 0.5))
    assert not case.equal(inputs, own._replace(first=moved), other)
    brighter = first._replace(images=first.images.clamp(max=250) + 5)
    assert not case.equal(inputs, own._replace(first=brighter), other)


LIGHT = Settings(scale=0.1, overrides=("model.backbone.name=resnet18",), classes=3)


def test_a_step_of_training_is_torchvisions() -> None:
    case = train.cases(LIGHT)[0]
    assert case.name == "resnet18, 64×64, batch 2, fp32"
    inputs, own, other = check(case, Path())
    assert not train.equal(inputs, own._replace(loss=own.loss * 1.01), other)
    unmoved = train.to_torchvision(inputs.weights, "the config")
    assert not train.equal(inputs, own._replace(weights=lambda: unmoved), other)


def test_a_step_of_training_a_segmenter_learns() -> None:
    case = segment.cases(SMALL)[0]
    run = case.ours(case.inputs(Path()))
    first, *_, last = (float(run()) for _ in range(4))
    assert last < first


def test_detections_from_files_are_torchvisions(tmp_path: Path) -> None:
    case = infer.cases(LIGHT)[0]
    _, own, _ = check(case, tmp_path)
    assert len(own) == infer.PHOTOS
    assert all(len(scores) > 10 for _, scores, _ in own)


def test_photos_of_the_right_size_are_asked_for(tmp_path: Path) -> None:
    generate.write_annotations(tmp_path / generate.TRAIN, [(480, 640), (500, 333)] * 3, boxes=1)
    with pytest.raises(BenchmarkError, match="has fewer than 4 images of 640 px"):
        infer.find_photos(tmp_path, 640)


WRITES = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[2]) / sys.argv[4]
folder.mkdir(parents=True)
(folder / "metrics.jsonl").write_text("{}\\n")
time.sleep(600)
"""


def test_a_launch_ends_with_the_first_line(tmp_path: Path) -> None:
    launch = startup.Launch(tmp_path, "cpu")
    assert launch.command[3:6] == ["train", "--config", "quickstart.yaml"]
    launch.command = [sys.executable, "-c", WRITES]
    launch()
    launch()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["run1", "run2"]
    launch.command = [sys.executable, "-c", "raise SystemExit(2)"]
    with pytest.raises(BenchmarkError, match="did not finish a step"):
        launch()


def test_a_process_works_when_it_is_asked_and_ends_with_its_object(monkeypatch: pytest.MonkeyPatch) -> None:
    process = waiting.Process(child_environment(), "as-torch", "infer", "64")
    process()
    child = process.process
    del process
    assert child.wait(10) == -signal.SIGKILL
    monkeypatch.setattr(waiting, "child_command", lambda *_: [sys.executable, "-c", ""])
    with pytest.raises(BenchmarkError, match="has ended"):
        waiting.Process(child_environment())


# --- what they are made of --------------------------------------------------------------------------------------------


def found(*rows: tuple[float, float, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Detections of (left, score, label), 10 px wide and high."""
    left, scores, labels = (torch.tensor([row[place] for row in rows]) for place in range(3))
    return torch.stack([left, left * 0, left + 10, left * 0 + 10], dim=1), scores, labels


SAME = {
    "in another order": (found((0.0, 0.9, 1), (50.0, 0.9, 1)), found((50.0, 0.9, 1), (0.0, 0.9, 1)), True),
    "within the tolerances": (found((0.0, 0.9, 1)), found((0.05, 0.9005, 1)), True),
    "another class": (found((0.0, 0.9, 1), (0.0, 0.5, 1)), found((0.0, 0.9, 2), (0.0, 0.5, 1)), False),
    "another place": (found((0.0, 0.9, 1), (0.0, 0.5, 1)), found((0.2, 0.9, 1), (0.0, 0.5, 1)), False),
    "another score": (found((0.0, 0.9, 1), (0.0, 0.5, 1)), found((0.0, 0.89, 1), (0.0, 0.5, 1)), False),
    "one more": (found((0.0, 0.9, 1)), found((0.0, 0.9, 1), (0.0, 0.5, 1)), False),
    "another one of equal score cut off": (
        found((0.0, 0.9, 1), (50.0, 0.5, 1)),
        found((0.0, 0.9, 1), (70.0, 0.5, 3)),
        True,
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_same_detections(name: str) -> None:
    one, two, is_same = SAME[name]
    assert same_detections([one], [two], score=1e-3, pixels=0.1) is is_same
    assert same_detections([two], [one], score=1e-3, pixels=0.1) is is_same


def test_generated_annotations_are_whole(tmp_path: Path) -> None:
    generate.write_annotations(tmp_path / "a.json", [(480, 640), (640, 480)], boxes=30)
    truth = read_annotations(tmp_path / "a.json")
    assert truth.first.tolist() == [0, 30, 60]
    boxes = truth.boxes_xywh
    assert boxes[:, 2:].min() >= 15.99
    assert (boxes[:, :2] >= 0).all()
    limits = torch.tensor([[640.0, 480.0]] * 30 + [[480.0, 640.0]] * 30)
    assert (boxes[:, :2] + boxes[:, 2:] <= limits + 0.02).all()


def test_boxes_follow_the_seed() -> None:
    one, same, other = (generate.random_boxes(np.random.default_rng(seed), 5, 100, 200) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_rows_are_json() -> None:
    assert set(FIELDS) <= set(Row.__dataclass_fields__)


def test_the_plain_fine_tuning_loop_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Red from blue, held back from train, from weights whose classifier has another number of classes."""
    for name, color in (("blue", (200, 40, 40)), ("red", (40, 40, 200))):
        (tmp_path / "train" / name).mkdir(parents=True)
        for index in range(16):
            image = np.full((32, 32, 3), color, np.uint8) + np.uint8(index)
            cv2.imwrite(str(tmp_path / "train" / name / f"{index}.png"), image)
    network = ["--network", "test_resnet", "--weights", str(tmp_path / "weights.pth")]
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pth")
    budget = ["--size", "32", "--epochs", "12", "--batch", "8", "--lr", "3e-3"]
    plain_finetuning.main(["--train", str(tmp_path / "train"), *network, *budget])
    assert "top-1 1.0000 of 8 images" in capsys.readouterr().out
