"""Activation checkpointing: what is inside a part is computed again for its gradient, not kept (Chen et al. 2016)."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

# Operations in a block at least: a bottleneck has ten. Between smaller ones as much would be kept as inside them.
MIN_OPERATIONS = 8


M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
LARGE = 4 << 20  # bytes


def free_large_tensors_at_once() -> None:
    """Have the C library give a tensor of ``LARGE`` bytes or more back to the system as soon as it is freed.

    glibc keeps it in a heap otherwise, and what is computed again does not fit into the holes: a tenth of all memory,
    for R50-FPN at 512×512 on a CPU. It costs time, which is what checkpointing spends. Elsewhere, nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)


def recompute(part: nn.Module, *inputs: Tensor) -> Any:
    """``part(*inputs)``, of which only the inputs are kept; gradients, random draws and statistics are the same."""
    # What is frozen keeps nothing as it is; checkpointed, it would keep its inputs.
    is_trained = any(tensor.requires_grad for tensor in (*inputs, *part.parameters()))
    if not (is_trained and torch.is_grad_enabled()):
        return part(*inputs)
    contexts = partial(_contexts, part)
    return checkpoint(part, *inputs, use_reentrant=False, context_fn=contexts)


def _contexts(part: nn.Module) -> tuple[Any, Any]:
    return contextlib.nullcontext(), _statistics_stand_still(part)


@contextlib.contextmanager
def _statistics_stand_still(part: nn.Module) -> Iterator[None]:
    """Batch norm normalises by the batch as before, and does not average over it a second time."""
    norms = [module for module in part.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:  # a recomputation is left by an exception as soon as it has all that the backward pass needs
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


class Recomputed(nn.Module):
    """A part that is recomputed."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *inputs: Tensor) -> Any:
        return recompute(self.part, *inputs)


def recompute_blocks(body: nn.Module) -> nn.Module:
    """``body`` as it trains, on its own parameters, in blocks that are recomputed one by one.

    A traced body is cut where one tensor alone goes on, as between a ResNet's blocks; another one is a single block.
    """
    if not isinstance(body, fx.GraphModule):
        return Recomputed(body)
    nodes = list(body.graph.nodes)
    place = {node: index for index, node in enumerate(nodes)}
    block, block_of, begin, last_reader = 0, {}, 0, 0
    for index, node in enumerate(nodes):
        block_of[node] = block
        # All that came before was read by this node at the latest; the features that the body returns are kept anyway.
        is_alone = last_reader <= index and not any(_is_in_place(body, user) for user in node.users)
        if is_alone and index - begin >= MIN_OPERATIONS:
            block, begin = block + 1, index
        if node.op != "get_attr":
            last_reader = max([last_reader, *(place[user] for user in node.users if user.op != "output")])
    blocks = split_module(body, body, block_of.__getitem__)
    for node in blocks.graph.nodes:
        if node.op == "call_module":
            blocks.set_submodule(node.target, Recomputed(blocks.get_submodule(node.target)))
    return blocks


def _is_in_place(body: nn.Module, node: fx.Node) -> bool:
    """Whether a node changes its input, which then is not there to begin a block again from."""
    operation = body.get_submodule(node.target) if node.op == "call_module" else None
    return getattr(operation, "inplace", False)
