"""Batch norms that stand still: one operation in training, none in prediction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d


class FrozenNorm(FrozenBatchNorm2d):
    """torchvision's, in one pass over the features in place of two, and in their own type under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → the same."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        # With features of half precision, float32 here would make float32 features, which autograd would keep.
        return torch.addcmul(shift.to(x.dtype)[:, None, None], x, scale.to(x.dtype)[:, None, None])


FOLDABLE = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenNorm)  # not their subclasses: timm's hold activations


@torch.no_grad()
def fold_norms(model: nn.Module, run: Callable[[], object]) -> None:
    """Put every batch norm that follows a convolution into its weights; from then on ``model`` only predicts.

    ``run`` runs the model on any input: what follows what is seen, not typed in.
    """
    outputs: list[tuple[Tensor, nn.Module]] = []
    readers: dict[nn.Module, set[nn.Module]] = defaultdict(set)  # modules that take a convolution's output
    sources: dict[nn.Module, set[nn.Module | None]] = defaultdict(set)  # convolutions whose output a norm takes

    def note_output(convolution: nn.Module, _inputs: object, output: Tensor) -> None:
        outputs.append((output, convolution))  # held: a tensor that is freed may give its identity to another

    def note_input(module: nn.Module, inputs: tuple[object, ...]) -> None:
        source = next((convolution for output, convolution in outputs if inputs and output is inputs[0]), None)
        sources[module].add(source)
        if source is not None:
            readers[source].add(module)

    leaves = [module for module in model.modules() if not any(module.children())]
    handles = [module.register_forward_pre_hook(note_input) for module in leaves]
    handles += [module.register_forward_hook(note_output) for module in leaves if type(module) is nn.Conv2d]
    model.eval()
    run()
    for handle in handles:
        handle.remove()

    for name, norm in list(model.named_modules()):
        if type(norm) not in FOLDABLE or len(sources[norm]) != 1:
            continue
        (convolution,) = sources[norm]
        if convolution is None or readers[convolution] != {norm}:
            continue
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        model.set_submodule(name, nn.Identity())
