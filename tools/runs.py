#!/usr/bin/env python3
import sys

from detector.__main__ import run_command

sys.exit(run_command("runs"))
