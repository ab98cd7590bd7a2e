"""Serve a model over HTTP, with a page to try it.

detector serve --checkpoint runs/x/best.pt
curl --data-binary @a.jpg http://127.0.0.1:8000/predict

The page is at http://127.0.0.1:8000/ and the description of all routes at /openapi.json. Where the environment has
DETECTOR_TOKEN, requests must bear it (Authorization: Bearer TOKEN).
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from detector.commands import add_allow_code, count

TOKEN = "DETECTOR_TOKEN"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a .pt file, a run's folder, or an exported .onnx file")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=partial(count, least=0), default=8000, help="0: a free one (default: 8000)")
    parser.add_argument("--batch-size", type=count, default=8, help="most images per batch (default: 8)")
    parser.add_argument("--workers", type=count, default=2, help="processes that decode images (default: 2)")
    parser.add_argument(
        "--queue", type=count, default=64, help="most requests at a time; others get status 503 (default: 64)"
    )
    parser.add_argument(
        "--timeout", type=count, default=30, help="seconds for a request, then status 504 (default: 30)"
    )
    parser.add_argument("--max-mb", type=count, default=32, help="largest body, else status 413 (default: 32)")
    parser.add_argument("--max-megapixels", type=count, default=64, help="largest image, by its header (default: 64)")
    add_allow_code(parser)
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="config values, such as model.predict.max_detections=300"
    )


def run(args: argparse.Namespace) -> int:
    from detector.errors import ConfigError

    max_pixels = args.max_megapixels * 10**6
    # For kinds of images whose header only OpenCV reads; the processes that decode inherit it.
    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(max_pixels)
    try:
        from detector.inference.server import Server, Service, Settings, listen
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("starlette", "uvicorn", "python_multipart", "prometheus_client"):
            raise
        raise ConfigError(f"serve: needs the package {error.name}; pip install 'pyramid-detector[serve]'") from None

    from detector.inference.exported import open_predictor

    token = os.environ.get(TOKEN) or None
    if token is None and args.host not in ("127.0.0.1", "localhost", "::1"):
        print(f"warning: --host {args.host}: whoever reaches it can use it; set {TOKEN}", file=sys.stderr)
    predictor = open_predictor(args.checkpoint, args.device, args.overrides, args.allow_code, args.batch_size)
    settings = Settings(args.batch_size, args.workers, args.queue, args.timeout, args.max_mb * 10**6, max_pixels, token)
    name = str(Path(*Path(args.checkpoint).parts[-2:]))  # the client need not know where it lies
    with listen(args.host, args.port) as listening:
        host = f"[{args.host}]" if ":" in args.host else args.host
        started = partial(print, f"serving {name}: http://{host}:{listening.getsockname()[1]}", flush=True)
        Server(Service(predictor, name, settings), started).run(sockets=[listening])
    print("stopped; what was taken is answered", file=sys.stderr)
    return 0
