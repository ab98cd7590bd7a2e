"""The average of the weights: by hand, its buffers, and going on after a restart."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detector.training.average import average_weights


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
    average = average_weights(model, decay)
    for value, mean in zip([2.0, 13.0, 3.0], expected, strict=True):
        model.set(value)
        average.update_parameters(model)
        assert average.module.weight.tolist() == pytest.approx([mean, mean])
        assert average.module.wide.tolist() == pytest.approx([mean, mean])
        assert average.module.unsaved.tolist() == pytest.approx([mean, mean])
        assert average.module.frozen.tolist() == [7, 7]
        # Numbers that cannot be averaged are those of now.
        assert average.module.count.item() == value
        assert average.module.flag.item() == (value != 2)
        # The model itself is left alone.
        assert model.weight.tolist() == [value, value]


def test_decay_rises_to_its_limit() -> None:
    model = Mixed()
    average = average_weights(model, 0.99)
    kept = []
    for _ in range(1000):
        model.set(0.0)
        average.module.weight.data.fill_(1.0)
        average.update_parameters(model)
        kept.append(average.module.weight[0].item())
    assert kept[0] == 0
    # (1 + n) / (10 + n) at n updates before: 2 / 11, 11 / 20, 101 / 110; 0.99 from n = 890 on
    assert [kept[n] for n in (1, 10, 100, 889, 890, 999)] == pytest.approx(
        [2 / 11, 11 / 20, 101 / 110, 890 / 899, 0.99, 0.99]
    )
    assert kept == sorted(kept)


def test_batch_norm_statistics_are_averaged_and_its_count_copied() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    average = average_weights(model, 0.5)
    means, counts = [], []
    for _ in range(3):
        model(5 + torch.randn(4, 3, 8, 8))
        average.update_parameters(model)
        means.append(model[1].running_mean.clone())
        counts.append(average.module[1].num_batches_tracked.item())
    assert counts == [1, 2, 3]
    second = means[0] * 2 / 11 + means[1] * 9 / 11
    assert_close(average.module[1].running_mean, second / 4 + means[2] * 3 / 4)  # min(0.5, 3 / 12)


def test_the_average_of_a_model_that_stands_still_is_the_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    average = average_weights(model, 0.9)
    for _ in range(5):
        average.update_parameters(model)
    images = torch.randn(2, 3, 4, 4)
    assert_close(average.module.eval()(images), model(images))


def test_going_on_from_a_saved_average_changes_nothing() -> None:
    model = Mixed()
    average = average_weights(model, 0.9)
    for value in (2.0, 13.0):
        model.set(value)
        average.update_parameters(model)

    restored = average_weights(Mixed(), 0.9)
    restored.module.load_state_dict(average.module.state_dict())
    restored.module.unsaved.copy_(average.module.unsaved)
    restored.n_averaged.fill_(int(average.n_averaged))
    model.set(3.0)
    for one in (average, restored):
        one.update_parameters(model)
    assert torch.equal(average.module.weight, restored.module.weight)
    assert average.module.weight.tolist() == pytest.approx([5, 5])
