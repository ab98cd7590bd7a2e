"""A model behind HTTP: the routes, what a request may ask for, and what it is refused for.

A request's body is read with a limit, its images are decoded in processes (:mod:`detector.inference.decoders`), and
predicted in batches of one padded shape (:mod:`detector.inference.batching`). Images are held in memory until they are
answered, and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import io
import json
import math
import os
import platform
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import detector
from detector.config.tasks import TASKS
from detector.errors import ConfigError, DetectorError
from detector.inference.batching import Batcher, Timed
from detector.inference.decoders import Decode, Decoders
from detector.inference.images import ImagePredictor
from detector.inference.openapi import describe
from detector.reports.drawing import save_jpeg
from detector.reports.pages import render
from detector.system.processes import handled
from detector.tasks import get_results

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32)
STAGES = {
    "decode": "Time until an image is decoded.",
    "wait": "Time until a decoded image's batch begins.",
    "model": "Time of an image's batch.",
}
MAX_IMAGES = 32  # in one request
READY_BATCHES = 4  # batches that may be decoded and wait to be predicted; other images wait as files
LINGER_SECONDS = 2.0  # for which a refused body is still read: closing at once would lose the answer on its way
GONE = 499  # status in the metrics for clients that left, after nginx; nobody receives it
GUARDED = ("/predict", "/model", "/metrics")  # paths that need the token
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src blob: data:; style-src 'unsafe-inline';"
    " script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

Result = TypeVar("Result")


class Settings(NamedTuple):
    """Limits of a server."""

    batch_size: int = 8
    workers: int = 2  # processes that decode
    queue: int = 64  # requests that are being read or wait for their answer
    timeout: float = 30  # seconds until an answer
    max_bytes: int = 32_000_000  # of a body
    max_pixels: int = 2**26  # of an image
    token: str | None = None  # that requests must bear


class Options(NamedTuple):
    """What the query of ``/predict`` asks for."""

    score: float | None = None
    output: str = "json"
    draw_score: float = 0.4


class Service:
    """The routes and their state, of one event loop."""

    def __init__(self, predictor: ImagePredictor, name: str, settings: Settings) -> None:
        self.predictor, self.name, self.settings = predictor, name, settings
        self.is_ready, self.open = False, 0
        own: dict[str, Any] = {"namespace": "detector", "registry": CollectorRegistry()}
        self.registry = own["registry"]
        reasons = "Requests by path and status; 499: the client left."
        self.requests = Counter("requests", reasons, ["path", "status"], **own)
        self.restarts = Counter("decoder_restarts", "Decoding processes that died.", **own)
        Gauge("requests_open", "Requests that are being read or wait.", **own).set_function(lambda: self.open)
        self.seconds = Histogram("request_seconds", "Time of requests that were answered.", buckets=SECONDS, **own)
        self.batches = Histogram("batch_images", "Images per batch.", buckets=IMAGES, **own)
        self.stages = {
            name: Histogram(f"{name}_seconds", explanation, buckets=SECONDS, **own)
            for name, explanation in STAGES.items()
        }

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        settings = self.settings
        decode = Decode(self.predictor.reading, settings.max_pixels)
        self.decoders = await asyncio.to_thread(Decoders, decode, settings.workers, settings.timeout, self.restarts.inc)
        self.batcher = Batcher(self.predictor.predict_samples, settings.batch_size, self.batches.observe)
        self.room = asyncio.Semaphore(READY_BATCHES * settings.batch_size)
        warming = asyncio.create_task(self._warm_up())
        yield
        warming.cancel()
        self.decoders.close()
        self.batcher.close()

    async def _warm_up(self) -> None:
        """The first batch takes longer than all others."""
        black = np.zeros((480, 640, self.predictor.reading[0]), dtype=np.uint8)
        await self.batcher.predict(self.predictor.sample(black))
        self.is_ready = True

    # --- routes -------------------------------------------------------------------------------------------------------

    async def page(self, _request: Request) -> Response:
        return HTMLResponse(render("serve.html"), headers={"Content-Security-Policy": POLICY})

    async def health(self, _request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(self, _request: Request) -> Response:
        return PlainTextResponse("ready\n" if self.is_ready else "warming up\n", 200 if self.is_ready else 503)

    async def metrics(self, _request: Request) -> Response:
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    async def openapi(self, _request: Request) -> Response:
        return JSONResponse(describe(get_results(self.predictor.config.task), self.settings.token is not None))

    async def model(self, _request: Request) -> Response:
        config, settings = self.predictor.config, self.settings
        keys = ("exif", "max_value", get_results(config.task).SIZE_RULE)
        others = set().union(*TASKS.values()) - set(TASKS[config.task])  # keys that mean nothing here
        predict = _as_tree(config.model.predict)
        return JSONResponse(
            {
                "name": self.name,
                "task": config.task,
                "classes": [category._asdict() for category in self.predictor.categories],
                "input": {"channels": config.model.in_channels}
                | {key: _as_tree(getattr(config.data, key)) for key in keys},
                "predict": {key: value for key, value in predict.items() if f"model.predict.{key}" not in others},
                "limits": {
                    "bytes": settings.max_bytes,
                    "pixels": settings.max_pixels,
                    "images": MAX_IMAGES,
                    "seconds": settings.timeout,
                },
                "device": str(self.predictor.device),
                "versions": {
                    "detector": detector.__version__,
                    "torch": torch.__version__,
                    "python": platform.python_version(),
                },
            }
        )

    async def predict(self, request: Request) -> Response:
        """Images in, results or a drawing out."""
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.settings.max_bytes:
            raise await _refuse(request, self._too_large())
        if self.open >= self.settings.queue:
            full = f"{self.open} requests are waiting; try again"
            raise await _refuse(request, HTTPException(503, full, {"Retry-After": "1"}))
        started = time.perf_counter()
        with self._opened():
            options = parse_options(request.query_params)
            try:
                images = await asyncio.wait_for(self._read(request), self.settings.timeout)
            except asyncio.TimeoutError:  # the built-in one only from Python 3.11 on
                raise HTTPException(408, f"the body took longer than {self.settings.timeout:g} s") from None
            left = self.settings.timeout - (time.perf_counter() - started)
            response = await self._unless_gone(request, self._answer(images, options), left)
        self.seconds.observe(time.perf_counter() - started)
        return response

    # --- one request --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _opened(self) -> Iterator[None]:
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    async def _read(self, request: Request) -> list[tuple[str, bytes]]:
        """Names and bytes of the images of the body."""
        chunks = self._limited(request.stream())
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            data = b"".join([chunk async for chunk in chunks])
            return [("image.npy" if data.startswith(b"\x93NUMPY") else "image", data)]
        parser = _Parts(request.headers, chunks, max_files=MAX_IMAGES)
        parser.spool_max_size = 2 * self.settings.max_bytes  # never on the disk
        try:
            async with contextlib.aclosing(chunks):
                form = await parser.parse()
        except MultiPartException as error:
            raise HTTPException(422, f"the multipart body cannot be read: {error.message}") from None
        if not parser.is_complete:
            raise HTTPException(422, "the multipart body is cut off: it has no last boundary")
        images = []
        for number, (field, part) in enumerate(form.multi_items(), start=1):
            if isinstance(part, str):
                raise HTTPException(422, f"the part {field!r:.50} is not a file; give it a filename")
            name = PurePosixPath((part.filename or "").replace("\\", "/")).name
            images.append((name[:200] or f"image {number}", await part.read()))
        await form.close()
        if not images:
            raise HTTPException(422, "the multipart body has no image")
        return images

    async def _limited(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The chunks of a body, up to the limit: its header may be missing, or lie."""
        total = 0
        async for chunk in chunks:
            total += len(chunk)
            if total > self.settings.max_bytes:
                await _discard(chunks)
                raise self._too_large()
            yield chunk

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the body is larger than {self.settings.max_bytes:,} bytes")

    async def _unless_gone(self, request: Request, answer: Awaitable[Result], seconds: float) -> Result:
        """The answer, unless it takes too long or its client leaves: then all work on it is dropped."""

        async def until_gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        working, gone = asyncio.ensure_future(answer), asyncio.ensure_future(until_gone())
        try:
            done, _ = await asyncio.wait({working, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if working in done:
                return working.result()
            if gone in done:
                raise ClientDisconnect
            raise HTTPException(504, f"no answer within {self.settings.timeout:g} s; try again when less is asked")
        finally:
            working.cancel()
            gone.cancel()

    async def _answer(self, images: list[tuple[str, bytes]], options: Options) -> Response:
        if options.output == "drawing" and len(images) > 1:
            raise HTTPException(422, f"output=drawing: is of one image, the body has {len(images)}")
        if options.score is not None:
            self.predictor.check_score(options.score)
        tasks = [asyncio.create_task(self._find(*image, options.score)) for image in images]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        headers = {"Server-Timing": ", ".join(self._timings([times for _, times in found]))}
        if options.output == "drawing":
            draw = partial(self._draw, found[0][0], options.draw_score)
            drawing = await self.decoders.make(*images[0], draw)
            return Response(drawing, media_type="image/jpeg", headers=headers)
        to_results = get_results(self.predictor.config.task).to_results
        results = [
            row
            for number, ((name, _), (prediction, _)) in enumerate(zip(images, found, strict=True), start=1)
            for row in to_results(prediction, number, Path(name))
        ]
        return JSONResponse(results, headers=headers)

    async def _find(self, name: str, data: bytes, score: float | None) -> tuple[Any, dict[str, float]]:
        """The prediction of one image, and the seconds of each stage."""
        started = time.perf_counter()
        async with self.room:
            sample = await self.decoders.make(name, data, self.predictor.sample)
            decoded = time.perf_counter() - started
            timed: Timed = await self.batcher.predict(sample, score)
        times = {"decode": decoded, "wait": timed.waited, "model": timed.took}
        for stage, seconds in times.items():
            self.stages[stage].observe(seconds)
        return timed.prediction, times

    def _draw(self, prediction: Any, draw_score: float, image: np.ndarray) -> bytes:
        """A JPEG file."""
        file = io.BytesIO()
        save_jpeg(get_results(self.predictor.config.task).draw(image, prediction, draw_score), file, quality=90)
        return file.getvalue()

    def _timings(self, times: list[dict[str, float]]) -> Iterator[str]:
        """Each stage's longest time, in milliseconds."""
        for stage in self.stages:
            yield f"{stage};dur={1000 * max(one[stage] for one in times):.1f}"


class _Parts(MultiPartParser):
    is_complete = False

    def on_end(self) -> None:
        self.is_complete = True


class _Gate:
    """Around all routes: asks for the token, and counts the answers."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path, status = scope["path"], GONE

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-content-type-options", b"nosniff"))
            await send(message)

        try:
            if path in GUARDED and not self._is_allowed(Request(scope)):
                refused = HTTPException(
                    401, "give the token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
                )
                request = Request(scope, receive)
                return await show_error(request, await _refuse(request, refused))(scope, receive, send_counted)
            return await self.app(scope, receive, send_counted)
        except ClientDisconnect:
            return None
        except Exception:
            status = 500
            raise
        finally:
            self.service.requests.labels(path if path in PATHS else "other", str(status)).inc()

    def _is_allowed(self, request: Request) -> bool:
        token = self.service.settings.token
        given = request.headers.get("authorization", "").encode()
        return token is None or hmac.compare_digest(given, f"Bearer {token}".encode())


ROUTES = {
    "/": ("page", "GET"),
    "/predict": ("predict", "POST"),
    "/model": ("model", "GET"),
    "/healthz": ("health", "GET"),
    "/readyz": ("ready", "GET"),
    "/metrics": ("metrics", "GET"),
    "/openapi.json": ("openapi", "GET"),
}
PATHS = ROUTES.keys()


def build_app(service: Service) -> Starlette:
    routes = [Route(path, getattr(service, name), methods=[method]) for path, (name, method) in ROUTES.items()]
    return Starlette(
        routes=routes,
        middleware=[Middleware(_Gate, service=service)],
        exception_handlers={HTTPException: show_error, DetectorError: show_error, Exception: show_error},  # type: ignore[dict-item]
        lifespan=service.lifespan,
    )


def show_error(_request: Request, error: Exception) -> Response:
    """One line, as JSON."""
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    if isinstance(error, DetectorError):
        return JSONResponse({"error": str(error)}, 422)
    return JSONResponse({"error": f"the server failed: {type(error).__name__}; its log has the reason"}, 500)


def _as_tree(part: Any) -> Any:
    """A part of a config, or of what an exported file says of it, as dicts and lists."""
    return json.loads(
        json.dumps(part, default=lambda one: one.model_dump() if hasattr(one, "model_dump") else vars(one))
    )


def parse_options(query: QueryParams) -> Options:
    """Raises an HTTPException with the key, the value and the remedy."""
    given: dict[str, Any] = dict(query)
    if unknown := given.keys() - set(Options._fields):
        raise HTTPException(422, f"{min(unknown)!r:.50}: is not known; use {', '.join(Options._fields)}")
    for key in given.keys() & {"score", "draw_score"}:
        text = given[key]
        try:
            given[key] = float(text)
        except ValueError:
            given[key] = math.nan
        if not 0 <= given[key] <= 1:
            raise HTTPException(422, f"{key}={text!r:.50}: is not a number from 0 to 1")
    if given.get("output", "json") not in ("json", "drawing"):
        raise HTTPException(422, f"output={given['output']!r:.50}: is not known; use json or drawing")
    return Options(**given)


async def _refuse(request: Request, error: HTTPException) -> HTTPException:
    """The error, once the client has sent its body or has been heard long enough."""
    if "expect" not in request.headers:  # else it waits for our word
        await _discard(request.stream())
    return error


async def _discard(chunks: AsyncIterator[bytes]) -> None:
    async def read() -> None:
        async for _ in chunks:
            pass

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), LINGER_SECONDS)


# --- the process ------------------------------------------------------------------------------------------------------


class Server(uvicorn.Server):
    """``run(sockets=[...])`` serves until Ctrl-C or SIGTERM, and finishes what it took; a second one ends it.

    ``on_started`` is called once requests are answered.
    """

    def __init__(self, service: Service, on_started: Callable[[], None]) -> None:
        config = uvicorn.Config(
            build_app(service),
            lifespan="on",
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(service.settings.timeout),
        )
        super().__init__(config)
        self.on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        def stop(_number: int, _frame: Any) -> None:
            self.should_exit = True

        with handled(stop):
            yield


def listen(host: str, port: int) -> socket.socket:
    """A socket on an address of this machine; port 0 takes a free one. Raises ConfigError where that cannot be."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and (error.errno or 0) > 0 else error
        raise ConfigError(
            f"command line: {host}:{port}: cannot be served: {reason}; choose another --host or --port"
        ) from None
