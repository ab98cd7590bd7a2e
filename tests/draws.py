"""Networks whose weights are loaded, or not looked at, need not draw any: that takes longer than all else they do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from torch import nn


@contextmanager
def undrawn() -> Iterator[None]:
    """Build networks in memory as it is; what their constructors set to zeros, ones or a constant is set."""
    with pytest.MonkeyPatch.context() as patch:
        for draw in ("normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_", "trunc_normal_", "xavier_uniform_"):
            patch.setattr(nn.init, draw, lambda tensor, *_, **__: tensor)
        yield
