"""The server: right answers under load, a clear status for everything else, and its page in a browser."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from fuzz import mutate, photo
from PIL import Image

import detector
from detector.__main__ import run_command
from detector.checkpoints.checkpoint import save_checkpoint
from detector.config.loader import load_config
from detector.dev.stress import tiny_checkpoint
from detector.inference.decoders import Reader
from detector.inference.openapi import describe
from detector.inference.predictor import Predictor
from detector.models import build_model
from detector.structures import Category
from detector.tasks import get_results

server = pytest.importorskip("detector.inference.server", reason="needs the extra serve")

MOST = 20
ANY_SCORE = ["model.predict.score_threshold=0.0", f"model.predict.max_detections={MOST}"]


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client(NamedTuple):
    port: int
    service: Any

    def ask(self, path: str, body: Any = None, method: str = "", **headers: str) -> Answer:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method or ("GET" if body is None else "POST"), path, body, named)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())

    def meter(self, line: str) -> float:
        return float(re.search(rf"^{re.escape(line)} (.*)$", self.ask("/metrics").body.decode(), re.M)[1])


@contextlib.contextmanager
def served(predictor: Predictor, **settings: Any) -> Iterator[Client]:
    service = server.Service(predictor, "runs/tiny", server.Settings(workers=1, **settings))
    started = threading.Event()
    running = server.Server(service, started.set)
    with server.listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        started.wait()
        try:
            yield Client(listening.getsockname()[1], service)
        finally:
            running.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("served") / "tiny.pt")


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> Predictor:
    return Predictor.from_checkpoint(checkpoint, "cpu", ANY_SCORE)


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[Client]:
    with served(predictor, max_bytes=200_000, max_pixels=10**6) as client:
        yield client


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


PHOTO = Image.fromarray(photo(120, 160))
DEEP = Image.fromarray(photo(60, 90)[:, :, 0].astype(np.uint16) * 257)
FILES = {
    "wide.jpg": encoded(PHOTO),
    "high.jpg": encoded(PHOTO.rotate(90, expand=True)),
    "turned.jpg": encoded(PHOTO, exif=turned()),
    "long.png": encoded(PHOTO.resize((300, 40)), "PNG"),
    "gray.png": encoded(PHOTO.convert("L"), "PNG"),
    "deep.png": encoded(DEEP, "PNG"),
    "image.tif": encoded(PHOTO, "TIFF"),
    "image.webp": encoded(PHOTO, "WEBP"),
}


def form(files: dict[str, bytes]) -> tuple[bytes, str]:
    """A multipart body and its content type."""
    parts = [
        f'--xx\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in files.items()
    ]
    return b"".join(parts) + b"--xx--\r\n", "multipart/form-data; boundary=xx"


@pytest.fixture(scope="module")
def expected(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What ``infer`` would write of each file alone."""
    folder, rows = tmp_path_factory.mktemp("files"), {}
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
        (found,) = predictor.predict([folder / name])
        rows[name] = get_results("detection").to_results(found, 1, Path(name))
    return rows


def assert_same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """The same rows; a batch of another size may round the last digit differently."""
    assert len(found) == len(wanted) > 0
    for own, its in zip(found, wanted, strict=True):
        assert own.keys() == its.keys()
        assert own["category_id"] == its["category_id"]
        np.testing.assert_allclose(own["bbox"], its["bbox"], atol=0.021)
        assert own["score"] == pytest.approx(its["score"], abs=2.1e-5)


# --- answers ----------------------------------------------------------------------------------------------------------


def test_many_clients_get_what_the_predictor_finds(client: Client, expected: dict[str, Any]) -> None:
    """Raw bodies of several shapes at once; each is answered as if it were alone."""
    before = client.meter("detector_batch_images_count")

    def ask(number: int) -> None:
        name = sorted(FILES)[number % len(FILES)]
        answer = client.ask("/predict", FILES[name])
        assert answer.status == 200
        assert re.fullmatch(r"decode;dur=[\d.]+, wait;dur=[\d.]+, model;dur=[\d.]+", answer.headers["Server-Timing"])
        assert_same([row | {"file_name": name} for row in answer.json], expected[name])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(160)))
    assert client.meter("detector_batch_images_count") - before < 160  # some shared a batch


def test_a_form_has_several_images(client: Client, expected: dict[str, Any]) -> None:
    body, kind = form(FILES)
    answer = client.ask("/predict", body, content_type=kind)
    assert answer.status == 200
    for number, name in enumerate(FILES, start=1):
        rows = [row for row in answer.json if row["image_id"] == number]
        assert {row["file_name"] for row in rows} == {name}
        assert_same(rows, expected[name])


def test_a_drawing_and_a_threshold(client: Client) -> None:
    answer = client.ask("/predict?output=drawing&draw_score=0", FILES["turned.jpg"])
    drawing = Image.open(io.BytesIO(answer.body))
    assert (answer.headers["Content-Type"], drawing.format) == ("image/jpeg", "JPEG")
    assert drawing.height > drawing.width  # upright
    assert client.ask("/predict?score=1", FILES["wide.jpg"]).json == []


def test_the_model_says_what_it_is(client: Client) -> None:
    answer = client.ask("/model").json
    assert answer["task"] == "detection"
    assert answer["classes"][0] == {"id": 1, "name": "circle"}
    assert answer["predict"]["max_detections"] == MOST
    assert answer["versions"]["detector"] == detector.__version__
    assert "classes" not in answer["predict"]  # a key of classification
    assert client.ask("/healthz").body == b"ok\n"
    while client.ask("/readyz").status == 503:
        time.sleep(0.01)


def test_a_classifier_answers_as_its_table(colors: Path, tmp_path: Path) -> None:
    small = ["model.backbone.name=resnet10", "model.fpn={levels: [3, 4, 5], channels: 16}", "data.crop={size: 32}"]
    config = load_config("classify_quickstart.yaml", [*small, "model.predict.classes=2"])
    categories = [Category(label, name) for label, name in enumerate(("red", "green", "blue"))]
    path, file = tmp_path / "classifier.pt", min((colors / "val").rglob("*.png"))
    save_checkpoint(path, config, categories, {"model": build_model(config.model, 3).state_dict()})
    own = detector.load(path, "cpu")
    wanted = get_results("classification").to_results(own.predict([file])[0], 1, Path("image"))
    with served(own) as client:
        (row,) = client.ask("/predict", file.read_bytes()).json
        refused = client.ask("/predict?score=0.5", file.read_bytes())
    assert row == pytest.approx(wanted[0], abs=2e-5)
    assert list(row) == ["path", "label", "score", "label_2", "score_2"]
    assert (refused.status, refused.json["error"][:7]) == (422, "score: ")


# --- refusals ---------------------------------------------------------------------------------------------------------

TWO = form({"a.jpg": FILES["wide.jpg"], "b.jpg": FILES["wide.jpg"][:500]})
PATH = form({"../../etc/passwd": b"hello cat"})
BOMB = encoded(Image.new("L", (1001, 1000)), "PNG")
REFUSED: dict[str, tuple[int, str, str, Any, dict[str, str]]] = {
    "empty": (422, "image: the image is empty", "", b"", {}),
    "text": (422, "image: is not an image: it begins with b'hello ca'", "", b"hello cat", {}),
    "cut off": (422, "or is cut off", "", FILES["wide.jpg"][:500], {}),
    "one of two": (422, "b.jpg: is not an image that", "", TWO[0], {"content_type": TWO[1]}),
    "pixels": (422, "image: has 1,001×1,000 pixels; this server takes 1,000,000", "", BOMB, {}),
    "a form cut off": (422, "is cut off", "", TWO[0][:-20], {"content_type": TWO[1]}),
    "no boundary": (422, "Missing boundary", "", TWO[0], {"content_type": "multipart/form-data"}),
    "an empty form": (422, "has no image", "", b"--xx--\r\n", {"content_type": TWO[1]}),
    "a field": (
        422,
        "part 'a' is not a file",
        "",
        b'--xx\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--xx--\r\n',
        {"content_type": TWO[1]},
    ),
    "a path": (422, "passwd: is not an image", "", PATH[0], {"content_type": PATH[1]}),
    "two drawings": (422, "of one image", "?output=drawing", TWO[0], {"content_type": TWO[1]}),
    "a typo": (422, "'scor': is not known; use score", "?scor=1", FILES["wide.jpg"], {}),
    "percent": (422, "score='50': is not a number from 0 to 1", "?score=50", FILES["wide.jpg"], {}),
    "nan": (422, "not a number from 0 to 1", "?score=nan", FILES["wide.jpg"], {}),
    "output": (422, "output='xml': is not known", "?output=xml", FILES["wide.jpg"], {}),
    "too long": (413, "larger than 200,000 bytes", "", bytes(200_001), {}),
    "too long, in chunks": (413, "larger than 200,000 bytes", "", (bytes(9_000) for _ in range(23)), {}),
    "no length": (413, "larger than 200,000 bytes", "", b"x", {"Content_Length": "9" * 10}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_has_a_status_and_one_line(name: str, client: Client) -> None:
    status, words, query, body, headers = REFUSED[name]
    answer = client.ask(f"/predict{query}", body, "POST", **headers)
    assert answer.status == status
    assert words in answer.json["error"]
    assert "\n" not in answer.json["error"]


def test_other_paths_and_methods(client: Client) -> None:
    assert client.ask("/etc/passwd").json == {"error": "Not Found"}
    assert client.ask("/predict").status == 405
    assert client.meter('detector_requests_total{path="other",status="404"}') == 1


def test_damaged_bodies_get_a_status_each(client: Client) -> None:
    rng = random.Random(0)
    bodies = [(data, "image/jpeg") for data in FILES.values()] + [form(FILES)]
    statuses = set()
    for number in range(100):
        data, kind = bodies[number % len(bodies)]
        answer = client.ask("/predict", mutate(data, rng), content_type=kind)
        statuses.add(answer.status)
        assert answer.status == 200 or "\n" not in answer.json["error"]
    assert statuses <= {200, 413, 422}
    assert 422 in statuses
    assert client.ask("/predict", FILES["wide.jpg"]).status == 200


def test_a_token_is_asked_for(predictor: Predictor) -> None:
    with served(predictor, token="geheim") as client:
        for path in server.GUARDED:
            assert client.ask(path, authorization="Bearer gehein").status == 401
            assert client.ask(path, authorization="geheim").headers["WWW-Authenticate"] == "Bearer"
        assert client.ask("/predict", FILES["wide.jpg"], authorization="Bearer geheim").status == 200
        assert client.ask("/model", authorization="Bearer geheim").status == 200
        assert [client.ask(path).status for path in ("/", "/healthz", "/openapi.json")] == [200] * 3


def test_the_description_is_of_the_routes_that_exist(client: Client) -> None:
    described = client.ask("/openapi.json").json
    routes = {path: {method.lower()} for path, (_, method) in server.ROUTES.items()}
    assert {path: set(methods) for path, methods in described["paths"].items()} == routes
    parameters = {one["name"] for one in described["paths"]["/predict"]["post"]["parameters"]}
    assert parameters == set(server.Options._fields)
    assert described == json.loads(json.dumps(describe("detection", False)))
    assert {"413", "422", "503", "504"} <= described["paths"]["/predict"]["post"]["responses"].keys()


# --- load, leaving, dying ---------------------------------------------------------------------------------------------


class Held(Predictor):
    """Predicts when it is let."""

    let: threading.Event

    def predict_samples(self, samples: list[Any], score_threshold: float | None = None) -> list[Any]:
        self.let.wait()
        return super().predict_samples(samples, score_threshold)


@pytest.fixture
def held(predictor: Predictor) -> Held:
    own = Held(predictor.model, predictor.config, predictor.categories, predictor.device)
    own.let = threading.Event()
    return own


def until(condition: Any) -> None:
    while not condition():
        time.sleep(0.005)


def test_a_full_queue_refuses_and_what_left_is_not_predicted(held: Held) -> None:
    with served(held, queue=3) as client, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(client.ask, "/predict", FILES["wide.jpg"]) for _ in range(2)]
        until(lambda: client.service.open == 2)
        leaving = socket.create_connection(("127.0.0.1", client.port))
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(FILES['wide.jpg'])}\r\n\r\n"
        leaving.sendall(head.encode() + FILES["wide.jpg"])
        until(lambda: client.service.open == 3)
        refused = client.ask("/predict", FILES["wide.jpg"])
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        assert client.ask("/readyz").status == 503  # the first batch is not done
        leaving.close()
        until(lambda: client.service.open == 2)
        held.let.set()
        assert [one.result().status for one in waiting] == [200, 200]
        assert client.meter("detector_batch_images_sum") == 3  # the first one, of zeros, and two
        assert client.meter('detector_requests_total{path="/predict",status="499"}') == 1


def test_who_waits_too_long_is_told(held: Held) -> None:
    with served(held, timeout=0.5) as client:
        answer = client.ask("/predict", FILES["wide.jpg"])
        held.let.set()
        assert (answer.status, answer.json["error"][:15]) == (504, "no answer withi")
        slow = socket.create_connection(("127.0.0.1", client.port))
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n12")
        assert slow.recv(100).startswith(b"HTTP/1.1 408")
        assert client.service.open == 0


def test_an_image_that_breaks_the_model_fails_alone(predictor: Predictor, expected: dict[str, Any]) -> None:
    class Breaking(Predictor):
        def predict_samples(self, samples: list[Any], score_threshold: float | None = None) -> list[Any]:
            if any(sample.image.float().mean() < 1 for sample in samples):
                raise RuntimeError("out of memory")
            return super().predict_samples(samples, score_threshold)

    own = Breaking(predictor.model, predictor.config, predictor.categories, predictor.device)
    black = encoded(Image.new("RGB", PHOTO.size))
    with served(own) as client, ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda number: client.ask("/predict", [FILES["wide.jpg"], black][number % 2]), range(8))
        )
    assert [answer.status for answer in answers] == [200, 500] * 4
    for answer in answers[::2]:
        assert_same([row | {"file_name": "wide.jpg"} for row in answer.json], expected["wide.jpg"])


class Dying(Reader):
    """Dies of images that are called so; what only kills it once leaves a file."""

    def sample(self, name: str, data: bytes) -> Any:
        once = Path(name.removeprefix("once").replace(",", "/"))
        if name == "deadly.jpg" or (name.startswith("once,") and not once.exists()):
            if name != "deadly.jpg":
                once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().sample(name, data)


def test_a_decoder_that_dies_costs_its_image_only(
    predictor: Predictor, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(server, "Reader", Dying)
    with served(predictor) as client:
        deadly, kind = form({"deadly.jpg": FILES["wide.jpg"]})
        answer = client.ask("/predict", deadly, content_type=kind)
        assert (answer.status, answer.json["error"]) == (
            422,
            "deadly.jpg: the process that decoded the image died, twice; it may be damaged",
        )
        name = "once" + str(tmp_path / "died").replace("/", ",")
        once, kind = form({name: FILES["wide.jpg"]})
        answer = client.ask("/predict", once, content_type=kind)
        assert_same([row | {"file_name": "wide.jpg"} for row in answer.json], expected["wide.jpg"])
        assert client.meter("detector_decoder_restarts_total") == 3


# --- the page ---------------------------------------------------------------------------------------------------------


TRANSFER = """([name, data]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([Uint8Array.from(data)], name));
  return transfer;
}"""


class Tab(NamedTuple):
    page: Any
    complaints: list[str]  # what the page says on the console, and what it asks of others

    def drop(self, name: str, data: bytes) -> None:
        transfer = self.page.evaluate_handle(TRANSFER, [name, list(data)])
        self.page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
        self.page.wait_for_selector(f"#status:has-text('{name}: ')")


@pytest.fixture
def open_tab(browser: Any) -> Iterator[Any]:
    contexts = []

    def open_page(client: Client, **options: Any) -> Tab:
        contexts.append(browser.new_context(**options))
        page, complaints = contexts[-1].new_page(), []
        own = f"http://127.0.0.1:{client.port}/"
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda one: complaints.append(one.url) if own not in one.url else None)
        page.goto(own)
        page.wait_for_selector("#about:not(:empty)")
        return Tab(page, complaints)

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (390, "dark")])
def test_the_page_shows_what_is_found(
    width: int, scheme: str, client: Client, open_tab: Any, expected: dict[str, Any]
) -> None:
    page, complaints = tab = open_tab(client, viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab.drop("wide.jpg", FILES["wide.jpg"])
    assert page.locator("#rows tr").count() == 0  # random weights: all scores are below 0.4
    page.focus("#threshold")
    page.keyboard.press("Home")
    wanted = expected["wide.jpg"]
    assert page.locator("#rows td:first-child").all_inner_texts() == [row["category_name"] for row in wanted]
    stage = page.locator("#stage").bounding_box()
    first = page.locator("#boxes div").last.bounding_box()  # drawn last, on top
    scale, (x, y, w, h) = stage["width"] / PHOTO.width, wanted[0]["bbox"]
    shown = [first["x"] - stage["x"], first["y"] - stage["y"], first["width"], first["height"]]
    np.testing.assert_allclose(shown, np.array([x, y, w, h]) * scale, atol=1)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    with page.expect_download() as download:
        page.click("#download")
    assert_same([row | {"file_name": "wide.jpg"} for row in json.loads(download.value.path().read_text())], wanted)
    page.locator("#filter input").first.uncheck()
    assert 0 < page.locator("#boxes div").count() < len(wanted)
    tab.drop("turned.jpg", FILES["turned.jpg"])
    stage = page.locator("#stage").bounding_box()
    assert stage["height"] > stage["width"]  # upright, as it was predicted
    tab.drop("image.tif", FILES["image.tif"])  # of which a browser knows nothing: the server draws it
    assert page.locator("#image").evaluate("image => image.naturalWidth") == 480
    tab.page.locator("#file").set_input_files({"name": "a.txt", "mimeType": "text/plain", "buffer": b"hello cat"})
    page.wait_for_selector("#status.error:has-text('is not an image')")
    assert [one for one in complaints if not one.startswith(("blob:", "Failed to load resource"))] == []


# --- the command ------------------------------------------------------------------------------------------------------


def test_sigterm_finishes_what_was_taken(checkpoint: Path) -> None:
    command = [sys.executable, "-m", "detector", "serve", "--checkpoint", str(checkpoint), "--port", "0"]
    process = subprocess.Popen([*command, *ANY_SCORE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert "/tiny.pt: http://127.0.0.1:" in line
        taken = socket.create_connection(("127.0.0.1", int(line.split(":")[-1])))
        data = FILES["wide.jpg"]
        taken.sendall(f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data[:99])
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        while True:  # until it listens no more
            try:
                socket.create_connection(taken.getpeername()).close()
            except OSError:
                break
            time.sleep(0.01)
        taken.sendall(data[99:])
        with taken.makefile("rb") as answer:
            assert b" 200 OK" in answer.readline()
            assert answer.read().count(b'"bbox"') == MOST
        assert process.wait(60) == 0
        assert process.stderr.read() == "stopped; what was taken is answered\n"
    finally:
        process.kill()


def test_a_mistake_is_one_line(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with server.listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert run_command("serve", ["--checkpoint", str(checkpoint), "--port", port]) == 2
    said = capsys.readouterr().err
    remedy = "cannot be served: Address already in use; choose another --host or --port"
    assert said == f"error: command line: 127.0.0.1:{port}: {remedy}\n"
