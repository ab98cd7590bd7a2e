"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import short
import torch
from hypothesis import settings
from PIL import Image

from detector.data.synthetic import write_shapes
from detector.dev import stress
from detector.training import fitting

REPOSITORY = Path(__file__).resolve().parent.parent

# The tensors of tests are small: threads that wait for each other cost more than they bring.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start, too

# The same examples in every run: a test that fails today fails tomorrow.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """Training and prediction flush denormals, for the whole process; the next test begins without."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session", autouse=True)
def short_runs() -> Iterator[None]:
    """Runs of the tests end without their report, which takes longer than they do; those that look at it have it back.

    So do the processes that :func:`detector.dev.stress.start` starts.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "report_best", lambda *arguments: None)
        patch.setattr(stress, "_run", short.run)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data sets beside the repository, or where DETECTOR_SHARED says (from the repository)."""
    folder = (REPOSITORY / os.environ.get("DETECTOR_SHARED", "../shared")).resolve()
    if not folder.is_dir():
        pytest.skip(f"{folder}: no such folder; DETECTOR_SHARED names another one")
    return folder


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated COCO-format set of 12 train and 6 val images; a test that changes it works on a copy."""
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, train=12, val=6)
    return folder


@pytest.fixture(scope="session")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated folder of class folders, 18 train and 6 val images: noise in blue, green and red."""
    folder = tmp_path_factory.mktemp("colors")
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for channel, name in enumerate(["red", "green", "blue"]):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 150, (*rng.integers(32, 49, 2), 3), dtype=np.uint8)
                pixels[..., channel] += 100
                Image.fromarray(pixels).save(folder / split / name / f"{name}_{number}.png")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch hub's folder of checkpoints, empty, and no network: a download fails, as it does without one."""

    def refuse(url: str, target: str) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A real browser without a window: Debian's chromium, driven by playwright."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens an HTML file at a width and colour scheme; whatever it says on the console or asks of a network fails."""
    complaints: list[str] = []
    contexts = []

    def open_file(path: Path, width: int = 1600, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 1000}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"script: {error}"))
        page.on("request", lambda request: complaints.append(f"request: {request.url[:80]}"))
        page.goto(path.as_uri())
        # The page itself, and images that it holds, are no requests to anywhere.
        own = (f"request: {path.as_uri()[:80]}", "request: data:")
        complaints[:] = [complaint for complaint in complaints if not complaint.startswith(own)]
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert [complaint for complaint in complaints if not complaint.startswith("request: data:")] == []


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder for files of a hundred megabytes, which no run leaves behind."""
    yield tmp_path
    shutil.rmtree(tmp_path)
