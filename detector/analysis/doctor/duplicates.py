"""Duplicate images, byte for byte or similar to the eye, within a split and across."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from detector.analysis.doctor.columns import Split
from detector.analysis.doctor.files import BITS, FileFacts
from detector.analysis.doctor.findings import Example, Finding, findings_of

# Distances are numbers of differing bits, of 128. Hashes that differ in at most 15 bits have at least one of their 16
# bytes in common (pigeonhole principle), so only those that agree in a byte are compared. ``files`` tells which
# distances copies and unrelated images have.
NEAR = 15
ALL_BUT_SAME = 2
IDENTICAL = -1  # the distance of files with the same bytes
_BLOCK = 2**20  # distances computed together


class Pair(NamedTuple):
    """An image, the one that it duplicates, and the number of bits in which they differ."""

    split: Split
    index: int
    other: Split
    other_index: int
    distance: int  # IDENTICAL, or 0..NEAR

    def labels(self) -> tuple[list[str], list[str]]:
        return _labels(self.split, self.index), _labels(self.other, self.other_index)


def check_duplicates(splits: Sequence[Split], facts: Sequence[Sequence[FileFacts]]) -> Iterator[Finding]:
    """Duplicates within each split, those of an earlier set to train on in a later one, and those of train in val."""
    within = [[*_within(split, own)] for split, own in zip(splits, facts, strict=True)]
    across = []
    for split, pairs in zip(splits, within, strict=True):
        yield from _of_both_kinds("images", split.name, pairs)
    for (one, one_facts), (other, other_facts) in combinations(zip(splits, facts, strict=True), 2):
        pairs = [*_across(other, other_facts, one, one_facts)]
        kind = "leak" if one.is_train and not other.is_train else "images"
        yield from _of_both_kinds(kind, f"{one.name}/{other.name}", pairs)
        across += pairs
    same = [pair for pair in sum(within, across) if pair.distance <= ALL_BUT_SAME]
    conflicts = [pair for pair in same if len({*map(tuple, pair.labels())}) > 1]
    yield from _findings("label-conflict", "/".join(split.name for split in splits), conflicts)


def _of_both_kinds(kind: str, name: str, pairs: Sequence[Pair]) -> Iterator[Finding]:
    yield from _findings(f"{kind}-identical", name, [pair for pair in pairs if pair.distance == IDENTICAL])
    yield from _findings(f"{kind}-near", name, [pair for pair in pairs if pair.distance != IDENTICAL])


def _findings(check: str, name: str, pairs: Sequence[Pair]) -> Iterator[Finding]:
    pairs = sorted(pairs, key=lambda pair: pair.distance)

    def example(pair: Pair) -> Example:
        own, theirs = pair.labels()
        parts = [f"{', '.join(own)} and {', '.join(theirs)}"] if own != theirs else []
        parts += [f"{pair.distance} of {BITS} bits differ"] if pair.distance != IDENTICAL else []
        return Example(
            pair.split.files[pair.index],
            detail="; ".join(parts),
            split=pair.split.name,
            other=pair.other.files[pair.other_index],
            other_split=pair.other.name,
        )

    yield from findings_of(check, name, pairs, example)


def _labels(split: Split, index: int) -> list[str]:
    """Sorted class names of a labelled image; none with boxes."""
    if split.has_boxes:
        return []
    low, high = np.searchsorted(split.image, [index, index + 1])
    return sorted(split.categories[label].name for label in split.label[low:high])


def _within(split: Split, facts: Sequence[FileFacts]) -> Iterator[Pair]:
    """Images that duplicate an earlier one."""
    first_of: dict[bytes, int] = {}
    alone = []
    for index, own in enumerate(facts):
        first = first_of.setdefault(own.digest, index) if own.digest else index
        if first == index:
            alone.append(index)
        elif split.files[first] != split.files[index]:  # a file that is listed twice is another finding
            yield Pair(split, index, split, first, IDENTICAL)
    hashed = [index for index in alone if facts[index].perceptual_hash]
    hashes = _as_bytes(facts[index].perceptual_hash for index in hashed)
    nearest, distance = find_nearest(hashes, hashes, earlier_only=True)
    for row in np.flatnonzero(distance <= NEAR):
        yield Pair(split, hashed[row], split, hashed[nearest[row]], int(distance[row]))


def _across(
    val: Split, val_facts: Sequence[FileFacts], train: Split, train_facts: Sequence[FileFacts]
) -> Iterator[Pair]:
    """Images of val, or a later set, that duplicate one of train; of headers alone, those that are the same file."""

    def identity(split: Split, index: int, own: FileFacts) -> bytes:
        return own.digest or os.fsencode(split.path(index).absolute())

    first_of: dict[bytes, int] = {}
    for index, own in enumerate(train_facts):
        first_of.setdefault(identity(train, index, own), index)
    queries = []
    for index, own in enumerate(val_facts):
        if (first := first_of.get(identity(val, index, own))) is not None:
            yield Pair(val, index, train, first, IDENTICAL)
        elif own.perceptual_hash:
            queries.append(index)
    keys = [index for index, own in enumerate(train_facts) if own.perceptual_hash]
    nearest, distance = find_nearest(
        _as_bytes(val_facts[index].perceptual_hash for index in queries),
        _as_bytes(train_facts[key].perceptual_hash for key in keys),
    )
    for row in np.flatnonzero(distance <= NEAR):
        yield Pair(val, queries[row], train, keys[nearest[row]], int(distance[row]))


def _as_bytes(hashes: Iterable[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, BITS // 8)


def find_nearest(queries: np.ndarray, keys: np.ndarray, earlier_only: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The index [Q] of the key nearest to each query in Hamming distance, and that distance, exact up to ``NEAR``.

    Hashes are [Q, 16] and [N, 16] uint8. With ``earlier_only``, queries and keys are the same, and only keys before the
    query count. A query without a near key may have the distance BITS + 1.
    """
    best = np.full(len(queries), BITS + 1, dtype=np.int64)
    where = np.zeros(len(queries), dtype=np.int64)
    wide_queries, wide_keys = (np.ascontiguousarray(hashes).view(np.uint64) for hashes in (queries, keys))
    for band in range(BITS // 8):
        query_order, query_ends = _buckets(queries[:, band])
        key_order, key_ends = _buckets(keys[:, band])
        for value in range(256):
            members = query_order[query_ends[value] : query_ends[value + 1]]
            candidates = key_order[key_ends[value] : key_ends[value + 1]]
            if len(members) == 0 or len(candidates) == 0:
                continue
            step = max(1, _BLOCK // len(candidates))
            for start in range(0, len(members), step):
                block = members[start : start + step]
                distance = np.bitwise_count(wide_queries[block, None, 0] ^ wide_keys[None, candidates, 0])
                distance += np.bitwise_count(wide_queries[block, None, 1] ^ wide_keys[None, candidates, 1])
                if earlier_only:
                    distance[candidates[None, :] >= block[:, None]] = BITS + 1
                nearest = distance.argmin(axis=1)
                least = distance[np.arange(len(block)), nearest]
                is_better = least < best[block]
                best[block[is_better]] = least[is_better]
                where[block[is_better]] = candidates[nearest[is_better]]
    return where, best


def _buckets(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order that sorts bytes, and where each of the 256 values begins in it."""
    order = np.argsort(values, kind="stable")
    return order, np.searchsorted(values[order], np.arange(257))
