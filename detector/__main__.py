"""``python -m detector COMMAND`` and the console script ``detector``."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import signal
import sys
from collections.abc import Sequence

import detector
from detector.commands import Warnings, check_overrides
from detector.errors import DetectorError
from detector.processes import ends_with_its_output, handled, interrupt, prepare_command

COMMANDS = {
    "quickstart": "generate images of shapes, train on them, evaluate, and draw the detections",
    "train": "train a model from a config",
    "doctor": "say what is wrong with a data set, and write a cleaned copy",
    "split": "split a COCO file into one to train on and one to evaluate on",
    "evaluate": "score a checkpoint, or a COCO results file",
    "browse": "show the training data as it is stored and as it is augmented",
    "infer": "find objects in a folder of images, or classify them",
    "import_weights": "make a checkpoint from one of torchvision, Detectron2 or MMDetection",
    "anchors": "show how well anchors cover the objects of a data set, and suggest better ones",
    "summary": "show what a model costs: parameters, multiply-adds, memory, time",
    "benchmark": "measure time and memory against torchvision",
    "gpu_check": "on a machine with a GPU: check results, measure times, profile a step",
    "env": "show versions, GPUs and settings of this machine, for a bug report",
    "stress": "kill, soak and overload tiny runs, and check that nothing is lost",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="detector", description="RetinaNet-style detection and classification on feature pyramids."
    )
    parser.add_argument("--version", action="version", version=f"detector {detector.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--quiet"]:  # belongs to the command
        arguments = [*arguments[1:], "--quiet"]
    name = arguments[0].replace("-", "_") if arguments else ""
    if name in COMMANDS:
        return run_command(name, arguments[1:], prog=f"detector {name}")
    if arguments and not arguments[0].startswith("-"):
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
        print(f"error: {arguments[0]}: no such command; {hint}", file=sys.stderr)
        return 2
    with ends_with_its_output():
        parser.parse_args(arguments)  # exits: --help, --version, or a usage error
    raise AssertionError("a command is required")


def run_command(name: str, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse and run the command of ``detector.commands.NAME``; errors that a user can fix become one line each."""
    with ends_with_its_output():
        return _run_command(name, argv, prog)


def _run_command(name: str, argv: Sequence[str] | None, prog: str | None) -> int:
    prepare_command()
    args = build_parser(name, prog).parse_intermixed_args(argv)
    try:
        check_overrides(getattr(args, "overrides", []))
        quiet = contextlib.redirect_stderr(Warnings(sys.stderr)) if args.quiet else contextlib.nullcontext()
        with quiet, handled(interrupt):
            return importlib.import_module(f"detector.commands.{name}").run(args)
    except DetectorError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        print("stopped", file=sys.stderr)
        return 128 + (error.args or (signal.SIGINT,))[0]  # 130 or 143, as in a shell


def build_parser(name: str, prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command of ``detector.commands.NAME``."""
    command = importlib.import_module(f"detector.commands.{name}")
    parser = argparse.ArgumentParser(
        prog=prog, description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_arguments(parser)
    parser.add_argument(
        "--quiet", action="store_true", help="print results, warnings and errors only, no progress and notices"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
