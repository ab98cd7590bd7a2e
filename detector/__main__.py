"""``python -m detector COMMAND`` and the console script ``detector``."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import importlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import detector
from detector.commands import Warnings, check_overrides
from detector.errors import ConfigError, DataError, DetectorError
from detector.system.processes import ends_with_its_output, handled, interrupt, prepare_command

COMMANDS = {
    "quickstart": "generate images of shapes, train on them, evaluate, and draw the detections",
    "train": "train a model from a config",
    "runs": "list the run folders with their scores, states and times",
    "compare": "train one or several configs with several seeds, and print mean and deviation",
    "doctor": "say what is wrong with a data set, and write a cleaned copy",
    "split": "split a data set into parts to train, evaluate and test on, or into folds",
    "convert": "write a data set's boxes in another format",
    "merge": "join several data sets into one",
    "evaluate": "score a checkpoint, or a COCO results file",
    "browse": "show the training data as it is stored and as it is augmented",
    "infer": "find objects in a folder of images, classify or segment them",
    "serve": "answer images over HTTP, with a page to try it",
    "export": "write a model to one ONNX file that runs without this package",
    "import_weights": "make a checkpoint from one of torchvision, Detectron2 or MMDetection",
    "anchors": "show how well anchors cover the objects of a data set, and suggest better ones",
    "summary": "show what a model costs: parameters, multiply-adds, memory, time",
    "benchmark": "measure time and memory against torchvision",
    "gpu_check": "on a machine with a GPU: check results, measure times, profile a step",
    "env": "show versions, GPUs and settings of this machine, for a bug report",
    "stress": "kill, soak and overload tiny runs, and check that nothing is lost",
}
# The runtime (runtime/) is this package with few of its commands.
COMMANDS = {
    name: text
    for name, text in COMMANDS.items()
    if Path(__file__).with_name("commands").joinpath(f"{name}.py").exists()
}
PROGRAM = (__package__ or "detector").replace("_", "-")

# What a path of the user's may raise wherever it is used first.
PATH_ERRORS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)
LONGEST = 200  # characters of a path in a message


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = Parser(
        prog=PROGRAM, description="RetinaNet-style detection, classification and segmentation on feature pyramids."
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {detector.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--quiet"]:  # belongs to the command
        arguments = [*arguments[1:], "--quiet"]
    name = arguments[0].replace("-", "_") if arguments else ""
    if name in COMMANDS:
        return run_command(name, arguments[1:], prog=f"{PROGRAM} {name}")
    with ends_with_its_output():
        try:
            if arguments and not arguments[0].startswith("-"):
                near = difflib.get_close_matches(name, COMMANDS, n=1)
                hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
                raise ConfigError(f"{arguments[0]}: no such command; {hint}")
            parser.given = arguments
            parser.parse_args(arguments)  # exits: --help or --version
        except ConfigError as error:
            return report(error)
    raise AssertionError("a command is required")


def run_command(name: str, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse and run the command of ``detector.commands.NAME``; errors that a user can fix become one line each."""
    with ends_with_its_output():
        return _run_command(name, argv, prog)


def _run_command(name: str, argv: Sequence[str] | None, prog: str | None) -> int:
    prepare_command()
    with handled(interrupt, ends_process=True):
        try:
            parser = build_parser(name, prog)
            parser.given = sys.argv[1:] if argv is None else argv
            args = parser.parse_intermixed_args(argv)
            check_overrides(getattr(args, "overrides", []))
            with contextlib.redirect_stderr(Warnings(sys.stderr)) if args.quiet else contextlib.nullcontext():
                return importlib.import_module(f"detector.commands.{name}").run(args)
        except DetectorError as error:
            return report(error)
        except OSError as error:
            if error.filename is None or error.errno not in PATH_ERRORS:
                raise
            path = str(error.filename)[:LONGEST]
            return report(DataError(f"{path}: {error.strerror}; choose or permit another path"))
        except KeyboardInterrupt as error:
            print("stopped", file=sys.stderr)
            return 128 + (error.args or (signal.SIGINT,))[0]  # 130 or 143, as in a shell


def report(error: DetectorError) -> int:
    """Print an error, which may list several faults, and return its exit code."""
    print("error: " + str(error).replace("\n", "\n       "), file=sys.stderr)
    return error.exit_code


class Parser(argparse.ArgumentParser):
    """Arguments that cannot be parsed are one line instead of the usage."""

    given: Sequence[str] = ()  # all arguments

    def error(self, message: str) -> NoReturn:
        options = [name for name in self._option_string_actions if name.startswith("--")]
        words = [word.partition("=")[0] for word in self.given if word.startswith("--")]
        # argparse would say first that the option that a misspelled one means is missing.
        for word in words:
            if not any(option.startswith(word) for option in options):
                near = difflib.get_close_matches(word, options, n=1)
                message = f"{word}: no such option" + (f" (did you mean {near[0]}?)" if near else "")
        message = message.removeprefix("argument ").replace("invalid int value", "is not a whole number")
        raise ConfigError(f"command line: {message}; see {self.prog} --help")


def build_parser(name: str, prog: str | None = None) -> Parser:
    """The parser of the command of ``detector.commands.NAME``, as which ``tools/NAME.py`` runs without ``prog``."""
    command = importlib.import_module(f"detector.commands.{name}")
    parser = Parser(
        prog=prog or f"tools/{name}.py",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    parser.add_argument(
        "--quiet", action="store_true", help="print results, warnings and errors only, no progress and notices"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
