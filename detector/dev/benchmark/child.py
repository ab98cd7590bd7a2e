"""The process that measures the memory of one side of a case; see ``measure.measure_memory``.

On a CPU: the peak of the resident set over its size once the inputs were made (``VmHWM``, which Linux resets on
request; ``ru_maxrss`` would start at the parent's). On a GPU: the same of the allocator.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch

from detector.dev.benchmark.measure import Memory, Settings, find_cases


def main(request: str) -> None:
    asked = json.loads(request)
    settings = Settings(**asked["settings"])
    torch.set_flush_denormal(True)
    case = next(case for case in find_cases(asked["module"], settings) if case.name == asked["case"])
    inputs = case.inputs(Path(asked["folder"]))
    build = getattr(case, asked["side"])
    gc.collect()
    before = begin(settings.device)
    run = build(inputs)
    output = run()
    if not case.slow:
        # Twice: a step's peak includes the optimizer's state, which the first step creates at its end.
        output = None
        output = run()
    memory = end(settings.device, before)
    del output  # held until here
    print(json.dumps(memory._asdict()))


def begin(device: str) -> int | None:
    """Reset the peak; returns the bytes in use."""
    if device != "cpu":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # not Linux
        return None
    return status("VmRSS")


def end(device: str, before: int | None) -> Memory:
    if before is None:
        return Memory(None, None)
    if device == "cpu":
        held, peak = status("VmRSS"), status("VmHWM")
    else:
        held, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    return Memory(peak=(peak - before) / 1e6, held=(held - before) / 1e6)


def status(key: str) -> int:
    """A size in /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


if __name__ == "__main__":
    main(sys.argv[1])
