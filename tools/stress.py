#!/usr/bin/env python3
import sys

from detector.__main__ import run_command

if __name__ == "__main__":  # the fork server's processes import this file, too
    sys.exit(run_command("stress"))
