"""The order of images: a pure function of (seed, epoch), the same for every way of sharing it."""

from __future__ import annotations

from collections import Counter
from itertools import chain, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.config.schema import ResizeConfig
from detector.data.formats.annotations import Annotations
from detector.data.formats.reading import read_annotations
from detector.data.loading.sampler import EvalBatches, Key, TrainBatches, epoch_batches, repeat_factors
from detector.data.transforms.resize import input_sizes, padded

sizes = st.integers(1, 60)
batch_sizes = st.integers(1, 17)


def wide_and_tall(num_images: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(num_images) < 0.6


@given(num_images=sizes, batch_size=batch_sizes, grouped=st.booleans(), epoch=st.integers(0, 5))
def test_every_image_comes_once_but_for_what_fills_the_last(
    num_images: int, batch_size: int, grouped: bool, epoch: int
) -> None:
    is_wide = wide_and_tall(num_images) if grouped else None
    batches = epoch_batches(is_wide, num_images, batch_size, seed=1, epoch=epoch)
    steps = -(-num_images // batch_size)
    assert batches.shape == (steps, batch_size)
    counts = Counter(batches.ravel().tolist())
    assert sorted(counts) == list(range(num_images))
    # What fills the last batch comes from all images in turn: none twice more than another.
    assert max(counts.values()) - min(counts.values()) <= 1


def test_the_last_batch_is_filled_from_the_beginning() -> None:
    # One batch of 8 from 5 images: the whole order, and its first three again.
    batch = epoch_batches(None, 5, 8, seed=0, epoch=0)[0].tolist()
    assert sorted(batch[:5]) == [0, 1, 2, 3, 4]
    assert batch[5:] == batch[:3]
    # Of 2 images, 4 times each.
    batch = epoch_batches(None, 2, 8, seed=0, epoch=0)[0].tolist()
    assert batch == batch[:2] * 4


def test_repeat_factors_by_hand() -> None:
    # Class 0 is in 4 of 4 images, 1 in two of them, 2 in one (twice): sqrt(0.5 / 1) < 1, sqrt(0.5 / 0.5) = 1, and
    # sqrt(0.5 / 0.25) = 1.414; an image takes the largest, and one without objects comes once.
    image, label = np.array([0, 1, 1, 2, 2, 2, 3, 3]), np.array([0, 0, 1, 0, 2, 2, 0, 1])
    assert repeat_factors(image, label, 4, 0.5) == pytest.approx([1, 1, 2**0.5, 1])
    assert repeat_factors(image, label, 5, 0.9) == pytest.approx([1.125**0.5, 1.5, 4.5**0.5, 1.5, 1])


@settings(max_examples=20)
@given(st.lists(st.sampled_from([1.0, 1.5, 4.0]), min_size=1, max_size=40), st.booleans())
def test_images_come_in_proportion_to_their_repeats(factors: list[float], grouped: bool) -> None:
    repeats, images = np.array(factors), len(factors)
    is_wide = wide_and_tall(images) if grouped else None
    drawn = [epoch_batches(is_wide, images, 1, 3, epoch, repeats).ravel() for epoch in range(60)]
    expected = repeats * images / repeats.sum()
    for batch in drawn:
        counts = np.bincount(batch, minlength=images)
        assert counts.sum() == images  # an epoch keeps its length
        assert (np.abs(counts - expected) < 1).all()  # rounded up or down
    # The mean of 60 roundings has a standard deviation of at most 0.5 / sqrt(60) = 0.065.
    assert np.bincount(np.concatenate(drawn), minlength=images) / 60 == pytest.approx(expected, abs=0.3)
    assert np.array_equal(drawn[7], epoch_batches(is_wide, images, 1, 3, 7, repeats).ravel())


def test_batches_are_of_one_aspect_by_hand() -> None:
    # 10 wide and 7 tall in batches of 4: 2 wide, 1 tall; the rest of 2 + 3 and 3 to fill make 2 more.
    is_wide = np.array([True] * 10 + [False] * 7)
    for epoch in range(20):
        batches = epoch_batches(is_wide, 17, 4, seed=0, epoch=epoch)
        kinds = Counter({0: "tall", 4: "wide"}.get(count, "mixed") for count in is_wide[batches].sum(axis=1).tolist())
        assert len(batches) == 5
        assert kinds["wide"] >= 2
        assert kinds["tall"] >= 1
        assert kinds["mixed"] <= 2


def test_mixed_batches_come_at_any_step() -> None:
    # 5 wide and 3 tall in batches of 4: 1 wide, 1 mixed.
    is_wide = np.array([True] * 5 + [False] * 3)
    orders = [is_wide[epoch_batches(is_wide, 8, 4, 0, epoch)].sum(axis=1).tolist() for epoch in range(30)]
    assert sorted(map(tuple, {tuple(order) for order in orders})) == [(1, 4), (4, 1)]


def test_without_groups_batches_mix() -> None:
    is_wide = np.array([True] * 16 + [False] * 16)
    batches = epoch_batches(None, 32, 8, seed=0, epoch=0)
    assert all(0 < count < 8 for count in is_wide[batches].sum(axis=1))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    is_wide = wide_and_tall(40)
    orders = {}
    for seed, epoch in product((0, 1, 2), (0, 1, 2)):
        np.random.seed(seed)
        orders[seed, epoch] = epoch_batches(is_wide, 40, 8, seed, epoch).tolist()
        np.random.seed(7)
        assert epoch_batches(is_wide, 40, 8, seed, epoch).tolist() == orders[seed, epoch]
    assert len({repr(order) for order in orders.values()}) == 9


def make(start_step: int = 0, steps: int = 12, rank: int = 0, world_size: int = 1, accumulate: int = 1) -> TrainBatches:
    """19 images in batches of 8: 3 steps an epoch."""
    return TrainBatches(19, 8, 5, start_step, steps, wide_and_tall(19), rank, world_size, accumulate)


def steps_of(sampler: TrainBatches) -> list[list[Key]]:
    """The keys of each step: ``accumulate`` parts in one list."""
    parts = list(sampler)
    assert len(parts) == len(sampler)
    starts = range(0, len(parts), sampler.accumulate)
    return [list(chain(*parts[start : start + sampler.accumulate])) for start in starts]


def test_steps_walk_through_the_epochs() -> None:
    steps = steps_of(make())
    assert len(steps) == 12
    for step, keys in enumerate(steps):
        assert len(keys) == 8
        assert {epoch for epoch, _ in keys} == {step // 3}
    for epoch in range(4):
        of_epoch = [index for keys in steps[3 * epoch : 3 * epoch + 3] for _, index in keys]
        assert set(of_epoch) == set(range(19))
        expected = epoch_batches(wide_and_tall(19), 19, 8, seed=5, epoch=epoch)
        assert of_epoch == expected.ravel().tolist()


@pytest.mark.parametrize(("world_size", "accumulate"), list(product((1, 2, 4), (1, 2))))
def test_ranks_and_parts_share_the_same_batches(world_size: int, accumulate: int) -> None:
    expected = steps_of(make())
    by_rank = [steps_of(make(rank=rank, world_size=world_size, accumulate=accumulate)) for rank in range(world_size)]
    for step, keys in enumerate(expected):
        shares = [own[step] for own in by_rank]
        assert [len(share) for share in shares] == [8 // world_size] * world_size
        assert list(chain(*shares)) == keys


@pytest.mark.parametrize("accumulate", [1, 2])
def test_parts_are_of_equal_size(accumulate: int) -> None:
    parts = list(make(rank=1, world_size=2, accumulate=accumulate))
    assert [len(part) for part in parts] == [4 // accumulate] * 12 * accumulate


@given(start=st.integers(0, 12), accumulate=st.sampled_from([1, 2, 4]), rank=st.integers(0, 1))
def test_starting_later_gives_the_rest_of_the_sequence(start: int, accumulate: int, rank: int) -> None:
    shared = {"rank": rank, "world_size": 2, "accumulate": accumulate}
    rest = list(make(start, **shared))
    assert rest == list(make(**shared))[start * accumulate :]
    assert len(rest) == len(make(start, **shared))


def test_another_end_changes_nothing_before_it() -> None:
    assert list(make(steps=5)) == list(make(steps=12))[:5]


def test_reading_it_twice_or_at_once_gives_the_same() -> None:
    sampler = make()
    first, second = iter(sampler), iter(sampler)
    interleaved = [(next(first), next(second)) for _ in range(12)]
    assert [one for one, _ in interleaved] == [other for _, other in interleaved] == list(sampler)


@given(num_images=st.integers(0, 30), batch_size=batch_sizes, world_size=st.integers(1, 5), kinds=st.integers(0, 4))
def test_ranks_evaluate_every_image_once(num_images: int, batch_size: int, world_size: int, kinds: int) -> None:
    shapes = np.random.default_rng(0).integers(kinds, size=(num_images, 2)) * 32 if kinds else None
    samplers = [EvalBatches(num_images, batch_size, rank, world_size, shapes) for rank in range(world_size)]
    shares = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(share) for share in shares]
    assert all(1 <= len(batch) <= batch_size for share in shares for batch in share)
    keys = [key for share in shares for batch in share for key in batch]
    assert sorted(keys) == [(0, index) for index in range(num_images)]
    lengths = [sum(map(len, share)) for share in shares]
    assert max(lengths) - min(lengths) <= 1
    for share in shares if kinds else ():
        of_batch = [{tuple(shapes[index]) for _, index in batch} for batch in share]
        assert all(len(own) == 1 for own in of_batch)
        # As few as there can be: of each shape one that is not full.
        counts = Counter(tuple(shapes[index]) for batch in share for _, index in batch)
        assert len(share) == sum(-(-count // batch_size) for count in counts.values())


def test_evaluation_goes_in_order_by_hand() -> None:
    assert list(EvalBatches(5, 2)) == [[(0, 0), (0, 1)], [(0, 2), (0, 3)], [(0, 4)]]
    assert list(EvalBatches(5, 2, rank=1, world_size=2)) == [[(0, 1), (0, 3)]]
    assert list(EvalBatches(2, 2, rank=2, world_size=3)) == []
    shapes = np.array([[64, 96], [96, 64], [64, 96], [64, 64], [64, 96]])
    assert list(EvalBatches(5, 2, shapes=shapes)) == [[(0, 3)], [(0, 0), (0, 2)], [(0, 4)], [(0, 1)]]
    assert list(EvalBatches(5, 2, 1, 2, shapes)) == [[(0, 0), (0, 4)]]  # of 3, 0, 2, 4, 1


def padded_share(notes: Annotations, batches: np.ndarray) -> float:
    """The fraction of padding in all pixels of batches at 800 / 1333."""
    files = torch.stack([notes.heights, notes.widths], dim=1).numpy()
    sizes = input_sizes(files, ResizeConfig())
    whole = padded(sizes[batches].max(axis=1))
    return 1 - sizes[batches].prod(axis=-1).sum() / (whole.prod(axis=-1).sum() * batches.shape[1])


@pytest.mark.parametrize(("batch_size", "most"), [(2, 0.12), (4, 0.16), (16, 0.25)])
def test_grouping_by_aspect_pads_little(batch_size: int, most: float, shared: Path) -> None:
    notes = read_annotations(shared / "data" / "coco" / "annotations" / "train.json")
    is_wide = (notes.widths >= notes.heights).numpy()
    grouped, mixed = (
        np.mean([padded_share(notes, epoch_batches(groups, len(notes), batch_size, 0, epoch)) for epoch in range(5)])
        for groups in (is_wide, None)
    )
    assert grouped < most
    assert grouped < 0.7 * mixed
