"""What a mistake on the command line, in a path or in a config is answered: one line, exit code 2, no traceback."""

from __future__ import annotations

import errno
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import torch

import detector
from detector.__main__ import main
from detector.checkpoints.foreign.importing import import_content
from detector.data.split import group
from detector.errors import ConfigError, WeightsError, counted, near_path
from detector.system.atomic import folder_of, make_folder
from detector.system.processes import child_environment


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with data, in which the commands run."""
    monkeypatch.chdir(tmp_path)
    for folder in ("images/cat", "runs/mine"):
        Path(folder).mkdir(parents=True)
    Path("train.json").write_text("{}")
    Path("mine.yaml").write_text("base: quickstart.yaml\n")
    Path("pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0f\n")


LONG = "x" * 300
MISTAKES = {
    "": "command line: the following arguments are required: COMMAND; see detector --help",
    "--frob": "command line: --frob: no such option; see detector --help",
    "trian": "trian: no such command; did you mean train?",
    "train": "command line: the following arguments are required: --config; see detector train --help",
    "train --confg x": "command line: --confg: no such option (did you mean --config?); see detector train --help",
    "train --config": "command line: --config: expected one argument; see detector train --help",
    "train --config x --overfit 0": "command line: --overfit: '0' is not a whole number of at least 1; see",
    "split train.json --seed x": "command line: --seed: is not a whole number: 'x'; see detector split --help",
    "browse --config x --split trian": "command line: --split: invalid choice: 'trian' (choose from 'train', 'val');",
    "env now": "command line: unrecognized arguments: now; see detector env --help",
    "train --config mine.yml": "mine.yml: no such config file; did you mean mine.yaml?",
    "train --config quickstar.yaml": "quickstar.yaml: no such config file; did you mean quickstart.yaml?",
    "evaluate --checkpoint run/mine": "run/mine: is not a file, a URL or a name of torchvision's weights; did you mean"
    " runs/mine?",
    "infer --checkpoint x --input Image --output o": "Image: no such file or folder; did you mean images?",
    "doctor --images imges --annotations train.json": "--images: imges is not a folder; did you mean images?",
    "doctor --images imges/cat": "--images: imges/cat is not a folder; did you mean images/cat?",
    "split trian.json --output o": "trian.json: cannot be read: No such file or directory; did you mean train.json?",
    "evaluate --results train.json --annotations train.json --images img": "--images: img is not a folder",
    "summary --config quickstart.yaml data.train=[a,b] data.train.images=i": "command line: data.train.images:"
    " data.train is a list; give each set its own, as [{annotations: a.json, images: a/}, b.json]",
    "evaluate --checkpoint pointer.pt": "pointer.pt: is text, which begins 'version https://git-lfs.github.com/s",
    f"summary --config {LONG}": f"{LONG[:200]}: File name too long; choose or permit another path",
    f"infer --checkpoint x --input {LONG} --output o": f"{LONG}: no such file or folder",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_one_line(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {MISTAKES[arguments]}")
    assert err.count("\n") == 1


def test_a_tool_names_itself() -> None:
    tool = Path(__file__).parents[1] / "tools" / "env.py"
    done = subprocess.run([sys.executable, str(tool), "--jsn"], capture_output=True, text=True, env=child_environment())
    said = "error: command line: --jsn: no such option (did you mean --json?); see tools/env.py --help\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_what_may_be_meant() -> None:
    assert near_path("IMAGES") == "; did you mean images?"
    assert near_path("imgs/dogs/1.jpg") == "; did you mean images?"  # images/dogs does not exist
    assert near_path("quickstart", ["quickstart.yaml"]) == "; did you mean quickstart.yaml?"
    assert near_path("images") == ""  # itself
    assert near_path("a\0b") == near_path("/") == near_path("zzz") == ""


def test_counted() -> None:
    assert [counted(*given) for given in ((1, "image"), (0, "class"), (1000, "invalid box"))] == [
        "1 image",
        "0 classes",
        "1,000 invalid boxes",
    ]


def test_a_folder_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def denied(path: Path) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", denied)  # the tests may run as root, who may read everything
    assert main(["doctor", "--images", "images"]) == 2
    assert capsys.readouterr().err == "error: images: cannot be read: Permission denied\n"
    assert main(["evaluate", "--checkpoint", "runs"]) == 2  # wherever it is met first
    assert capsys.readouterr().err == "error: runs: Permission denied; choose or permit another path\n"


def test_what_is_no_model() -> None:
    with pytest.raises(WeightsError, match=r"^a model's source is None; give a path, a URL or a name of torchvision's"):
        detector.open_model(None)
    for content, said in (
        ({"format": 1}, "mine.pt: is a checkpoint of this package already; use it as it is, or add --to torchvision"),
        ({"fc.weight": torch.ones(2, 2)}, r"its first tensor is fc.weight; a classifier's are given as model.backbone"),
    ):
        with pytest.raises(WeightsError, match=said):
            import_content(content, Path("mine.pt"))


def test_a_file_in_the_way_and_folders_that_stay_empty() -> None:
    for folder in ("train.json", "train.json/deep"):
        with pytest.raises(ConfigError, match=r"^train.json: is a file; choose another name$"):
            make_folder(Path(folder))
    with pytest.raises(ConfigError, match=r"^images: is a folder; give the name of a file$"), folder_of(Path("images")):
        pass
    with pytest.raises(KeyboardInterrupt), folder_of(Path("runs/new/deep/x.onnx")):
        assert Path("runs/new/deep").is_dir()
        raise KeyboardInterrupt
    assert list(Path("runs").iterdir()) == [Path("runs/mine")]
    with folder_of(Path("runs/new/x.onnx")):
        Path("runs/new/x.onnx").touch()
    assert Path("runs/new/x.onnx").exists()


def test_a_group_of_all_images_is_named() -> None:
    said = r"^a.json: '\^x' of --group keeps 2 images together in one group, which cannot be split; .* like x1.png$"
    with pytest.raises(ConfigError, match=said):
        group(Path("a.json"), ["x1.png", "x2.png"], "^x")


def test_a_second_signal_ends_a_stopped_command_without_a_traceback() -> None:
    code = "import atexit, signal, sys; from detector.__main__ import main; from detector.commands import env;"
    code += "env.run = lambda args: signal.raise_signal(signal.SIGTERM);"
    code += "atexit.register(signal.raise_signal, signal.SIGINT); sys.exit(main(['env']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=child_environment())
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "stopped\n")
