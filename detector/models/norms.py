"""Frozen batch norms: one operation in training, folded into convolutions for prediction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._pytree import tree_leaves
from torchvision.ops import FrozenBatchNorm2d


class FrozenNorm(FrozenBatchNorm2d):
    """torchvision's, but in one pass over the features instead of two, and in their dtype under autocast.

    Its values change by ``load_state_dict`` alone, which computes scale and shift once for all forward passes.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps)
        self.register_buffer("scale", None, persistent=False)
        self.register_buffer("shift", None, persistent=False)
        self._prepare()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        # A float32 scale would turn half-precision features into float32 ones, which autograd would keep.
        return torch.addcmul(self.shift.to(x.dtype)[:, None, None], x, self.scale.to(x.dtype)[:, None, None])

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._prepare()

    def _prepare(self) -> None:
        self.scale = self.weight * (self.running_var + self.eps).rsqrt()
        self.shift = self.bias - self.running_mean * self.scale


def changing_buffers(model: nn.Module) -> list[Tensor]:
    """The buffers that training may change: not those of frozen norms, and of layers whose parameters are frozen."""
    buffers = []
    for module in model.modules():
        own = [parameter.requires_grad for parameter in module.parameters(recurse=False)]
        if not isinstance(module, FrozenBatchNorm2d) and (any(own) or not own):
            buffers += module.buffers(recurse=False)
    return buffers


FOLDABLE = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenNorm)  # not their subclasses: timm's contain activations
# By how much folding may change an output, relative to its range; rounding changes it by less than 1e-5.
TOLERANCE = 1e-4


@torch.no_grad()
def fold_norms(model: nn.Module, run: Callable[[], Any]) -> None:
    """Fold every batch norm that follows a convolution into its weights; from then on ``model`` only predicts.

    ``run`` runs the model on an input and returns its output, tensors in any nesting. Which norm follows which
    convolution is observed during the run. A norm stays if anything else reads the convolution: other modules are
    observed too, and for functions (``x + conv(x)``) the changed output shows it.
    """
    model.eval()
    pairs, expected = _pairs(model, run)

    def fold(pairs: list[tuple[nn.Conv2d, str]]) -> None:
        before = [(convolution, convolution.weight, convolution.bias) for convolution, _ in pairs]
        norms = [(name, model.get_submodule(name)) for _, name in pairs]
        for (convolution, name), (_, norm) in zip(pairs, norms, strict=True):
            convolution.weight, convolution.bias = fuse_conv_bn_weights(
                convolution.weight,
                convolution.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
            model.set_submodule(name, nn.Identity())
        if all(map(_is_close, _tensors(run()), expected)):
            return
        for convolution, weight, bias in before:
            convolution.weight, convolution.bias = weight, bias
        for name, norm in norms:
            model.set_submodule(name, norm)
        if len(pairs) > 1:  # bisect for those that can be folded
            fold(pairs[: len(pairs) // 2])
            fold(pairs[len(pairs) // 2 :])

    fold(pairs)


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _is_close(output: Tensor, expected: Tensor) -> bool:
    is_off = (output - expected).abs() > TOLERANCE * (expected.max() - expected.min())
    return not is_off.any()


def _pairs(model: nn.Module, run: Callable[[], Any]) -> tuple[list[tuple[nn.Conv2d, str]], list[Tensor]]:
    """Convolutions that only one norm reads, with that norm's name; and the model's output."""
    outputs: list[tuple[Tensor, nn.Module]] = []
    readers: dict[nn.Module, set[nn.Module]] = defaultdict(set)  # modules that read a convolution's output
    sources: dict[nn.Module, set[nn.Module | None]] = defaultdict(set)  # the convolutions it reads; None: not one

    def note_output(convolution: nn.Module, _inputs: object, output: Tensor) -> None:
        outputs.append((output, convolution))  # keeps the tensor alive: another could reuse a freed one's identity

    def note_input(module: nn.Module, inputs: tuple[object, ...]) -> None:
        source = next((convolution for output, convolution in outputs if inputs and output is inputs[0]), None)
        sources[module].add(source)
        if source is not None:
            readers[source].add(module)

    leaves = [module for module in model.modules() if not any(module.children())]
    handles = [module.register_forward_pre_hook(note_input) for module in leaves]
    handles += [module.register_forward_hook(note_output) for module in leaves if type(module) is nn.Conv2d]
    output = _tensors(run())
    for handle in handles:
        handle.remove()

    pairs = []
    for name, norm in model.named_modules():
        if type(norm) in FOLDABLE and len(sources[norm]) == 1:
            (convolution,) = sources[norm]
            if convolution is not None and readers[convolution] == {norm}:
                pairs.append((convolution, name))
    return pairs, output
