"""``python -m detector COMMAND`` and the console script ``detector``."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence

from detector.errors import DetectorError
from detector.processes import handled, interrupt, prepare_command

COMMANDS = {
    "quickstart": "generate a set of shapes, train on it, evaluate, and draw what was found",
    "train": "train a model from a config",
    "doctor": "say what is wrong with a data set, and write a cleaned copy",
    "evaluate": "score a checkpoint, or a COCO results file",
    "browse": "show the training data as it is stored and as it is augmented",
    "infer": "find objects in a folder of pictures, or classify them",
    "import_weights": "make a checkpoint from one of torchvision, Detectron2 or MMDetection",
    "anchors": "show how well anchors reach the objects of a data set, and suggest better ones",
    "summary": "show what a model costs: parameters, multiply-adds, memory, time",
    "benchmark": "measure time and memory beside torchvision",
    "stress": "kill, soak and overload tiny runs, and say whether they lost anything",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="detector", description="RetinaNet-style detection and classification on feature pyramids."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    arguments = list(sys.argv[1:] if argv is None else argv)
    known = parser.parse_args(arguments[:1])
    return run_command(known.command, arguments[1:], prog=f"detector {known.command}")


def run_command(name: str, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse and run the command of ``detector.commands.NAME``; errors that a person can mend become one line each."""
    prepare_command()
    command = importlib.import_module(f"detector.commands.{name}")
    parser = argparse.ArgumentParser(
        prog=prog, description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_arguments(parser)
    args = parser.parse_intermixed_args(argv)
    try:
        with handled(interrupt):
            return command.run(args)
    except DetectorError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        print("stopped", file=sys.stderr)
        return 128 + (error.args or (signal.SIGINT,))[0]  # 130 and 143, as a shell has them


if __name__ == "__main__":
    sys.exit(main())
