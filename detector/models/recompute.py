"""Activation checkpointing: the backward pass recomputes a part's inner features (Chen et al. 2016)."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

# Smallest block; a bottleneck has ten operations. Smaller blocks would keep as much between them as inside.
MIN_OPERATIONS = 8
M_MMAP_THRESHOLD = -3  # from glibc's malloc.h
LARGE = 4 << 20  # bytes


def free_large_tensors_immediately() -> None:
    """Have glibc return tensors of ``LARGE`` bytes or more to the system as soon as they are freed.

    Otherwise they stay in its heap, and recomputed tensors do not fit into the holes: a tenth of all memory for R50-FPN
    at 512×512 on a CPU. It costs some time. With another C library, nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)


def recompute(part: nn.Module, *inputs: Tensor) -> Any:
    """``part(*inputs)``, keeping only the inputs; gradients, random draws and statistics are the same."""
    # A frozen part keeps nothing anyway; checkpointed, it would keep its inputs.
    is_trained = any(tensor.requires_grad for tensor in (*inputs, *part.parameters()))
    if not (is_trained and torch.is_grad_enabled()):
        return part(*inputs)

    def contexts() -> tuple[Any, Any]:
        return contextlib.nullcontext(), _frozen_statistics(part)  # of the forward pass, of the recomputation

    return checkpoint(part, *inputs, use_reentrant=False, context_fn=contexts)


@contextlib.contextmanager
def _frozen_statistics(part: nn.Module) -> Iterator[None]:
    """Batch norms still normalise by the batch, but do not average over it a second time."""
    norms = [module for module in part.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:  # checkpoint ends the recomputation by an exception once the backward pass has all it needs
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


class Recomputed(nn.Module):
    """Wraps a part that is to be recomputed."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *inputs: Tensor) -> Any:
        return recompute(self.part, *inputs)


def recompute_blocks(body: nn.Module) -> nn.Module:
    """``body`` in training, in blocks that are recomputed one by one; the parameters are shared.

    A traced body is cut where a single tensor goes on, as between a ResNet's blocks; any other body is one block.
    """
    if not isinstance(body, fx.GraphModule):
        return Recomputed(body)
    nodes = list(body.graph.nodes)
    index_of = {node: index for index, node in enumerate(nodes)}
    block, block_of, start, last_reader = 0, {}, 0, 0
    for index, node in enumerate(nodes):
        block_of[node] = block
        # No later node reads anything from before this one; the features that the body returns are kept anyway.
        is_alone = last_reader <= index and not any(_is_in_place(body, user) for user in node.users)
        if is_alone and index - start >= MIN_OPERATIONS:
            block, start = block + 1, index
        if node.op != "get_attr":
            last_reader = max([last_reader, *(index_of[user] for user in node.users if user.op != "output")])
    blocks = split_module(body, body, block_of.__getitem__)
    for node in blocks.graph.nodes:
        if node.op == "call_module":
            blocks.set_submodule(node.target, Recomputed(blocks.get_submodule(node.target)))
    return blocks


def _is_in_place(body: nn.Module, node: fx.Node) -> bool:
    """Whether a node changes its input, which could then not restart a block."""
    operation = body.get_submodule(node.target) if node.op == "call_module" else None
    return getattr(operation, "inplace", False)
