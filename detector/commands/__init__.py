"""The commands: each module has ``add_arguments(parser)`` and ``run(args)``.

Heavy imports stand inside ``run``, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    """The value of an option that says how many: a whole number, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)
