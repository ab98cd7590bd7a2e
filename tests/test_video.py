"""Videos, streams and cameras: which frames there are and when, what is written of them, and how they end."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from networks import TINY, TINY_BACKBONE
from PIL import Image

import detector
from detector.__main__ import run_command
from detector.checkpoints.checkpoint import save_checkpoint
from detector.config.loader import load_config
from detector.config.tasks import TASKS
from detector.errors import DataError
from detector.inference import video as video_module
from detector.inference import video_folder
from detector.inference.streaming import read_ahead
from detector.inference.video import Video, is_video
from detector.inference.video_folder import Drawing
from detector.models import build_model
from detector.models.backbones import BACKBONES
from detector.structures import Category
from detector.tasks import get_core, get_results

COUNT, RATE = 30, 10.0
SIZE = 96, 64  # width, height
SMALL = {
    "detection": ["model.predict.score_threshold=0.0", "model.predict.max_detections=3"],
    "classification": ["model.fpn.norm=bn", "data.crop.size=32"],
    "segmentation": [],
}


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", TINY)
        yield


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint of each task, with random weights."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def of(task: str) -> Path:
        path = folder / f"{task}.pt"
        if not path.exists():
            levels = "[2, 3, 4, 5]" if task == "segmentation" else "[3, 4, 5]"
            given = [TINY_BACKBONE, f"model.fpn={{levels: {levels}, channels: 8}}", *SMALL[task]]
            given += [] if task == "classification" else ["data.resize={short: [64], long: 96}"]
            config = load_config(get_core(task).QUICKSTART.config, given)
            torch.manual_seed(0)
            categories = [Category(number, name) for number, name in enumerate(("a", "b", "ö"), start=1)]
            save_checkpoint(path, config, categories, {"model": build_model(config.model, 3).state_dict()})
        return path

    return of


def write_clip(path: Path, codec: str = "mp4v", size: tuple[int, int] = SIZE) -> Path:
    """``COUNT`` frames, each brighter than the one before, with a white corner on top left."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), RATE, size)
    for number in range(COUNT):
        image = np.full((*size[::-1], 3), 8 * number, dtype=np.uint8)
        image[: size[1] // 4, : size[0] // 4] = 255
        writer.write(image)
    writer.release()
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


def numbers_of(frames: Any) -> list[int]:
    return [frame.number for frame in frames]


def number_in(image: np.ndarray) -> int:
    """The frame's number that :func:`write_clip` wrote as its brightness."""
    return round(float(image[SIZE[1] // 2 :].mean()) / 8)


# --- reading ----------------------------------------------------------------------------------------------------------


def boxed(data: bytes, path: list[bytes], change: Callable[[bytes], bytes]) -> bytes:
    """An MP4 file whose box at ``path`` has other content; the boxes around it get its new length."""
    start = 0
    while start < len(data):
        length = int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] == path[0]:
            content = data[start + 8 : start + length]
            content = boxed(content, path[1:], change) if path[1:] else change(content)
            return data[:start] + struct.pack(">I", 8 + len(content)) + path[0] + content + data[start + length :]
        start += length
    raise ValueError(path)


def test_times_are_exact_and_frames_are_upright(clip: Path, tmp_path: Path) -> None:
    """Frames of a phone: each lasts differently long, and the file says to turn them by a quarter."""
    ticks = [34 * number**2 for number in range(COUNT + 1)]  # of 10,240 per second: 3 s in all, as before
    data = clip.read_bytes()
    table = b"".join(struct.pack(">II", 1, after - before) for before, after in itertools.pairwise(ticks))
    to_track = [b"moov", b"trak"]
    data = boxed(
        data,
        [*to_track, b"mdia", b"minf", b"stbl", b"stts"],
        lambda content: content[:4] + struct.pack(">I", COUNT) + table,
    )
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)  # a quarter clockwise
    data = boxed(data, [*to_track, b"tkhd"], lambda content: content[:40] + matrix + content[76:])
    path = tmp_path / "phone.mp4"
    path.write_bytes(data)
    frames, stored = list(Video(path)), list(Video(clip))
    assert [frame.time for frame in frames] == pytest.approx(np.array(ticks[:-1]) / 10240, abs=1e-6)
    assert [frame.time for frame in stored] == pytest.approx(np.arange(COUNT) / RATE, abs=1e-6)
    for frame, before in zip(frames, stored, strict=True):
        assert np.array_equal(frame.image, np.rot90(before.image, -1))
    assert [number_in(frame.image) for frame in stored] == list(range(COUNT))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, list(range(30))),
        ({"every": 7}, [0, 7, 14, 21, 28]),
        ({"start": 0.5, "end": 1.0}, [5, 6, 7, 8, 9]),  # from 0.5 s, and before 1 s
        ({"start": 0.45, "every": 10}, [5, 15, 25]),  # counted from the first one
        ({"start": 2.9, "end": 100.0}, [29]),
    ],
)
def test_which_frames_are_read(given: dict[str, Any], expected: list[int], clip: Path) -> None:
    frames = list(Video(clip, **given))
    assert numbers_of(frames) == [number_in(frame.image) for frame in frames] == expected
    for index, last in enumerate(expected):  # continued after each
        assert numbers_of(Video(clip, **given).frames(after=last)) == expected[index + 1 :]


def test_gray_and_other_channels(clip: Path) -> None:
    frame = next(iter(Video(clip, channels=1)))
    assert frame.image.shape == (64, 96, 1)
    with pytest.raises(DataError, match=r"clip\.mp4: a video has 3 channels, model\.in_channels asks for 4"):
        Video(clip, channels=4)


def test_what_is_damaged_is_left_out_and_the_rest_keeps_its_numbers(tmp_path: Path) -> None:
    whole = bytearray(write_clip(tmp_path / "whole.avi", "MJPG").read_bytes())
    starts = [start for start in range(len(whole) - 4) if whole[start : start + 4] == b"00dc"][1:]  # not the index's
    path = tmp_path / "damaged.avi"
    damaged = whole[:]
    for number in (4, 5):
        damaged[starts[number] + 8 : starts[number] + 208] = bytes(200)
    path.write_bytes(damaged)
    video = Video(path)
    frames = list(video)
    kept = [0, 1, 2, 3, *range(6, 30)]
    assert [number_in(frame.image) for frame in frames] == kept
    assert [frame.time for frame in frames] == pytest.approx(np.array(kept) / RATE)
    assert video.lost == 2
    path.write_bytes(whole[: starts[12]])
    video = Video(path)
    assert numbers_of(video) == list(range(12))
    assert "of 3.00: damaged or cut off" in video.note


def test_what_is_a_video(tmp_path: Path, clip: Path) -> None:
    nameless = tmp_path / "clip"
    nameless.write_bytes(clip.read_bytes())
    image = tmp_path / "image.mp4"  # what a file holds decides, not its name
    Image.new("RGB", (8, 8)).save(image, "PNG")
    (tmp_path / "0").mkdir()
    assert [is_video(str(path)) for path in (clip, nameless, image, tmp_path, tmp_path / "a.jpg")] == [1, 1, 0, 0, 0]
    assert [is_video(text) for text in ("0", "rtsp://a/b", "/dev/video3", "s3://a/b", "x.mp4")] == [1, 1, 1, 0, 0]


# --- batches of a stream ----------------------------------------------------------------------------------------------


def test_batches_wait_as_asked() -> None:
    assert list(read_ahead(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(read_ahead([], 3)) == []
    taken = threading.Semaphore(0)

    def camera() -> Iterator[int]:
        """The next image comes only after the last one was handed out."""
        for number in range(4):
            yield number
            taken.acquire()

    for number, batch in enumerate(read_ahead(camera(), 3, wait=0.0)):
        assert batch == [number]  # nobody waited for others
        taken.release()


def test_the_source_waits_or_the_oldest_are_dropped() -> None:
    made: list[int] = []
    is_taken, is_over = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number
            is_taken.wait()  # until the first one was handed out
        is_over.set()

    batches = read_ahead(source(), 2, wait=0.0, drop=True)
    assert next(batches) == [0]
    is_taken.set()
    assert is_over.wait(10)  # the source did not wait for us
    assert list(batches) == [[18, 19]]
    made.clear()
    with contextlib.closing(read_ahead(source(), 2)) as waiting:
        assert next(waiting) == [0, 1]
        time.sleep(0.05)
        assert len(made) <= 5  # two handed out, two that wait, one in hand


def test_an_error_comes_after_what_came_before_it() -> None:
    def source() -> Iterator[int]:
        yield from range(3)
        raise DataError("broken")

    batches = read_ahead(source(), 2)
    assert [next(batches), next(batches)] == [[0, 1], [2]]
    with pytest.raises(DataError, match="broken"):
        next(batches)


def test_stream_gives_what_predict_gives(checkpoints: Callable[[str], Path], clip: Path) -> None:
    predictor = detector.load(checkpoints("detection"), device="cpu")
    frames = list(Video(clip, every=6))
    expected = predictor.predict([frame.image for frame in frames])
    assert len(expected[0].boxes) == 3
    for given in (frames, [frame.image for frame in frames], Video(clip, every=6)):
        pairs = list(predictor.stream(given, batch_size=2, wait=None))
        for (item, found), frame, own in zip(pairs, frames, expected, strict=True):
            assert np.array_equal(getattr(item, "image", item), frame.image)
            np.testing.assert_allclose(found.boxes, own.boxes, atol=1e-3)
    with pytest.raises(ValueError, match="score_threshold: 50"):
        predictor.stream(frames, score_threshold=50)  # at once, not at the first image
    with pytest.raises(TypeError, match="takes an iterable of images; this is of type str"):
        predictor.stream("clip.mp4")
    with pytest.raises(TypeError, match="image 1 is None"):
        list(predictor.stream([frames[0], None]))


# --- the command ------------------------------------------------------------------------------------------------------


def infer(checkpoint: Path, source: Path | str, output: Path, *more: str) -> int:
    given = ["--checkpoint", str(checkpoint), "--input", str(source), "--output", str(output), "--device", "cpu"]
    return run_command("infer", [*given, "--draw-score", "0", *more])


def lines_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("task", TASKS)
def test_a_video_of_every_task(task: str, checkpoints: Callable[[str], Path], clip: Path, tmp_path: Path) -> None:
    output, results = tmp_path / "found", get_results(task)
    assert infer(checkpoints(task), clip, output, "--every", "6", "--batch-size", "3") == 0
    lines, frames = lines_of(output), list(Video(clip, every=6))
    assert [(line["frame"], line["time"]) for line in lines] == [(0, 0.0), (6, 0.6), (12, 1.2), (18, 1.8), (24, 2.4)]
    found = detector.load(checkpoints(task), device="cpu").predict([frame.image for frame in frames])
    for line, prediction in zip(lines, found, strict=True):
        assert line["size"] == [64, 96]
        rows = [
            row | {"score": pytest.approx(row["score"], abs=2e-5)} if "score" in row else row for row in line["results"]
        ]
        expected = results.to_results(prediction, 0, Path())
        assert rows == [
            {key: row[key] for key in row if key not in ("image_id", "file_name", "path")} for row in expected
        ]
        assert rows
    files = {path.name for path in output.rglob("*.*")}
    masks = {f"{number:08}.png" for number in range(0, 30, 6)} if task == "segmentation" else set()
    assert files == {"predictions.jsonl", "video.webm", *masks}
    drawn = list(Video(output / "video.webm"))
    assert [frame.time for frame in drawn] == pytest.approx(np.arange(5) * 0.6, abs=1e-3)
    assert drawn[0].image.shape == (320, 480, 3)  # drawings of small images are enlarged
    brightness = [frame.image[200:].mean() for frame in drawn]
    assert brightness == sorted(brightness)


def test_a_run_that_is_stopped_continues(
    checkpoints: Callable[[str], Path],
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At every batch; each time, a kill has left half a line. The bytes are those of a run that was left alone."""
    checkpoint, output = checkpoints("detection"), tmp_path / "stopped"
    given = ["--batch-size", "4", "--every", "2"]
    assert infer(checkpoint, clip, tmp_path / "whole", *given) == 0
    predict = detector.Predictor.predict_samples
    for place in (0, 1, 2):
        calls = iter(range(place))

        def stop(predictor: Any, samples: list, score: Any, calls: Iterator[int] = calls) -> list:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return predict(predictor, samples, score)

        with monkeypatch.context() as patch:
            patch.setattr(detector.Predictor, "predict_samples", stop)
            assert infer(checkpoint, clip, output, *given, "--resume") == 75
        with (output / "predictions.jsonl").open("a") as file:
            file.write('{"frame": 16, "time": 1.6}\n{"frame": 18, "ti')
    assert "stopped; continue with --resume" in capsys.readouterr().err
    assert infer(checkpoint, clip, output, *given) == 2
    assert "holds a run that was not finished; continue it with --resume" in capsys.readouterr().err
    assert infer(checkpoint, clip, output, "--batch-size", "4", "--resume") == 2
    assert "every was 2, is 1; keep it to resume" in capsys.readouterr().err
    assert infer(checkpoint, clip, output, *given, "--resume") == 0
    files = [(tmp_path / name / "predictions.jsonl").read_bytes() for name in ("whole", "stopped")]
    assert files[0] == files[1]
    assert len(lines_of(output)) == 15
    counts = {path.name: len(list(Video(path))) for path in output.glob("*.webm")}
    assert counts == {"video.webm": 4, "video_00000007.webm": 8, "video_00000023.webm": 3}  # of frames 0, 8 and 24 on
    assert infer(checkpoint, clip, output, *given, "--resume") == 0
    assert capsys.readouterr().out.endswith(f"finished before: {output}/predictions.jsonl\n")
    assert infer(checkpoint, clip.parent, output) == 2
    assert "holds predictions of a video" in capsys.readouterr().err


REFUSED = {
    "camera 97: no such camera": ["97"],
    "rtsp://127.0.0.1:9/x: cannot be opened as a video": ["rtsp://me:secret@127.0.0.1:9/x"],
    "texts.mp4: no such file or folder; did you mean": ["{folder}/texts.mp4"],
    "text.mp4: is not a video that OpenCV can read": ["{folder}/text.mp4"],
    "empty.mp4: the file is empty": ["{folder}/empty.mp4"],
    "cut.mp4: is not a video that OpenCV can read": ["{folder}/cut.mp4"],
    "no frames that can be decoded": ["{folder}/header.webm"],
    "has no frame from 60 s on; the last one is at 2.900 s": ["{clip}", "--from", "1:00"],
    "--from 5 s is not before --to 4 s": ["{clip}", "--from", "5", "--to", "0:00:04"],
    "--reconnect is of streams": ["{clip}", "--reconnect", "5"],
    "--crops is for images": ["{clip}", "--crops"],
    "--workers is for images": ["{clip}", "--workers", "0"],
    "--annotations is for images, and rtsp://127.0.0.1:9/x is a video": [
        *("rtsp://me:secret@127.0.0.1:9/x", "--annotations", "a.json"),
    ],
    "--every is for videos": ["{folder}", "--every", "2"],
    "'1:x' is not a time": ["{clip}", "--to", "1:x"],
    "OpenCV lacks its codec ZZZZ": ["{clip}", "--video", "mp4"],
}


@pytest.mark.parametrize("said", REFUSED)
def test_one_line_for_every_mistake(
    said: str,
    checkpoints: Callable[[str], Path],
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, output = tmp_path / "in", tmp_path / "found"
    folder.mkdir()
    (folder / "text.mp4").write_text("no video\n" * 9)
    (folder / "empty.mp4").touch()
    (folder / "cut.mp4").write_bytes(clip.read_bytes()[:2000])
    whole = write_clip(folder / "header.webm", "VP80").read_bytes()
    (folder / "header.webm").write_bytes(whole[: whole.index(b"\x1fC\xb6u") + 20])  # ends in the first cluster
    monkeypatch.setitem(video_folder.CODECS, "mp4", "ZZZZ")
    source, *more = [text.format(folder=folder, clip=clip) for text in REFUSED[said]]
    assert infer(checkpoints("detection"), source, output, *more) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert "secret" not in error
    assert not output.exists() or list(output.iterdir()) == []


class Stream(http.server.BaseHTTPRequestHandler):
    """Motion JPEG over HTTP, as cameras in a network send it: ten images per connection."""

    connections = 0
    most = 2

    def do_GET(self) -> None:
        type(self).connections += 1
        if self.connections > self.most:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for number in range(10):
            jpeg = cv2.imencode(".jpg", np.full((64, 96, 3), 4 * number, np.uint8))[1].tobytes()
            part = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b\r\n" % (len(jpeg), jpeg)
            self.wfile.write(part)

    def log_message(self, *_: Any) -> None:
        pass


def test_a_stream_comes_back_and_ends(
    checkpoints: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(video_module, "PAUSE", 0.05)
    monkeypatch.setattr(Stream, "connections", 0)
    output, began = tmp_path / "found", time.time()
    given = ["--batch-size", "99"]  # so that none is dropped
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stream) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/stream"
        assert infer(checkpoints("detection"), url, output, *given, "--reconnect", "0.5") == 0
        said = "the stream ended, and was not back within 0.5 s; what came before is done"
        assert said in capsys.readouterr().err
        lines = lines_of(output)
        assert [line["frame"] for line in lines] == list(range(20))
        times = [line["time"] for line in lines]
        assert began < times[0] <= times[-1] < time.time()
        assert times == sorted(times)
        monkeypatch.setattr(Stream, "connections", 0)
        assert infer(checkpoints("detection"), url, tmp_path / "few", *given, "--from", "5") == 2
        assert "--from is of files" in capsys.readouterr().err
        server.shutdown()


# --- the drawing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["webm", "mp4"])
def test_a_drawing_is_shown_until_the_next_one(suffix: str, tmp_path: Path) -> None:
    """Frames at 0, 0.1, 0.5, 0.52 and 100.52 s: at 10 per second, slots 0, 1, 5, 6 (5 is taken), then at once 7."""
    drawing = Drawing(tmp_path / f"x.{suffix}", RATE)
    for shade, at in enumerate([0.0, 0.1, 0.5, 0.52, 100.52]):
        size = (96, 64) if shade != 2 else (97, 80)  # one of another size is fitted
        drawing.add(Image.new("RGB", size, (50 * shade, 0, 0)), 7.0 + at)
    drawing.close()
    frames = list(Video(drawing.path))
    assert [round(float(frame.image[20:40, 40:60, 0].mean()) / 50) for frame in frames] == [0, 1, 1, 1, 1, 2, 3, 4]
    assert {frame.image.shape for frame in frames} == {(64, 96, 3)}
