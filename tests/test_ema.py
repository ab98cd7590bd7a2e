"""The average of the weights: by hand, its buffers, and resuming."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from detector.training.average import AveragedWeights


class Mixed(nn.Module):
    """One of each kind of tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.full((2,), 7.0), requires_grad=False)
        self.register_buffer("wide", torch.ones(2, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("flag", torch.tensor(False))
        self.register_buffer("unsaved", torch.ones(2), persistent=False)

    def set(self, value: float) -> None:
        for tensor in (self.weight.data, self.wide, self.unsaved):
            tensor.fill_(value)
        self.count.fill_(int(value))
        self.flag.fill_(int(value) % 2 == 1)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        # The first update copies. The second keeps min(0.9, 2 / 11) of it: 2 · 2 / 11 + 13 · 9 / 11 = 11. The third
        # keeps min(0.9, 3 / 12): 11 / 4 + 3 · 3 / 4 = 5.
        (0.9, [2.0, 11.0, 5.0]),
        # 2 / 11, then 0.2: 11 · 0.2 + 3 · 0.8 = 4.6
        (0.2, [2.0, 11.0, 4.6]),
        # 2 · 0.1 + 13 · 0.9 = 11.9; 11.9 · 0.1 + 3 · 0.9 = 3.89
        (0.1, [2.0, 11.9, 3.89]),
    ],
)
def test_three_updates_by_hand(decay: float, expected: list[float]) -> None:
    model = Mixed()
    average = AveragedWeights(model, decay)
    for value, mean in zip([2.0, 13.0, 3.0], expected, strict=True):
        model.set(value)
        average.update(model)
        assert average.model.weight.tolist() == pytest.approx([mean, mean])
        assert average.model.wide.tolist() == pytest.approx([mean, mean])
        assert average.model.unsaved.tolist() == pytest.approx([mean, mean])
        assert average.model.frozen.tolist() == [7, 7]
        # Tensors that cannot be averaged are copied.
        assert average.model.count.item() == value
        assert average.model.flag.item() == (value != 2)
        # The model itself does not change.
        assert model.weight.tolist() == [value, value]


def test_decay_rises_to_its_limit() -> None:
    model = Mixed()
    average = AveragedWeights(model, 0.99)
    kept = []
    for _ in range(1000):
        model.set(0.0)
        average.model.weight.data.fill_(1.0)
        average.update(model)
        kept.append(average.model.weight[0].item())
    assert kept[0] == 0
    # (1 + n) / (10 + n) at n updates before: 2 / 11, 11 / 20, 101 / 110; 0.99 from n = 890 on
    assert [kept[n] for n in (1, 10, 100, 889, 890, 999)] == pytest.approx(
        [2 / 11, 11 / 20, 101 / 110, 890 / 899, 0.99, 0.99]
    )
    assert kept == sorted(kept)


def test_the_decay_rises_by_its_tau_by_hand() -> None:
    # 0.9999 · (1 - e^(-n / 2000)): n = 2000 keeps 0.632057; 0.993 · (1 - e^(-n / 100)): n = 100 keeps 0.627696.
    for decay, tau, updates, expected in ((0.9999, 2000, 2000, 0.632057), (0.993, 100, 100, 0.627696)):
        model = Mixed()
        average = AveragedWeights(model, decay, tau)
        model.set(0.0)
        average.updates = updates
        average.update(model)
        assert average.model.wide.tolist() == pytest.approx([expected] * 2, abs=1e-6)


def test_every_digit_is_that_of_torch() -> None:
    """Against torch's own class, whose constant decay is set at each step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    average, kept = AveragedWeights(model, 0.5), [0.0]
    reference = AveragedModel(
        model, multi_avg_fn=lambda *given: get_ema_multi_avg_fn(kept[0])(*given), use_buffers=True
    )
    for step in range(12):
        kept[0] = min(0.5, (1 + step) / (10 + step))
        model(5 + torch.randn(4, 3, 8, 8))
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter))
        average.update(model)
        reference.update_parameters(model)
        expected = reference.module.state_dict() | {"1.num_batches_tracked": torch.tensor(step + 1)}
        assert all(torch.equal(tensor, expected[name]) for name, tensor in average.model.state_dict().items())


def test_an_update_reads_nothing_from_the_device() -> None:
    model = Mixed().to("meta")  # whose tensors have no values: to read one raises
    average = AveragedWeights(model, 0.9)
    for _ in range(3):
        average.update(model)
    assert average.updates == 3


def test_resuming_a_saved_average_changes_nothing() -> None:
    """From what ``last.pt`` holds: a state dict and a number of updates."""
    model = Mixed()
    average = AveragedWeights(model, 0.9)
    for value in (2.0, 13.0):
        model.set(value)
        average.update(model)

    restored = AveragedWeights(Mixed(), 0.9)
    restored.model.load_state_dict(average.model.state_dict())
    restored.updates = average.updates
    model.set(3.0)
    for one in (average, restored):
        one.update(model)
    assert torch.equal(average.model.weight, restored.model.weight)
    assert average.model.weight.tolist() == pytest.approx([5, 5])
