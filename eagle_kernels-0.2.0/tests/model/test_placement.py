"""Placement of a row: every token once, equal shares, balanced work, and segments that say what a mask says."""

from itertools import pairwise

import numpy as np
import pytest

from eagle_model.model.placement import MAX_IMBALANCE, place

ROWS = {
    "one document": [0, 61],
    "many": [0, 3, 4, 4, 17, 30, 31, 64],
    "shorter than the chunks": [0, 2, 5],
    "one token": [0, 1],
    "nothing": [0, 0],
}
rows = pytest.mark.parametrize("ends", ROWS.values(), ids=list(ROWS))
shares = pytest.mark.parametrize(
    ("num_ranks", "order"), [(1, "balanced"), (2, "zigzag"), (4, "balanced"), (4, "zigzag"), (16, "balanced")]
)


def visible(ends: list[int], total: int) -> np.ndarray:
    """(T, T) mask of causal documents; what the row is padded with sees nothing and is not seen."""
    mask = np.zeros((total, total), bool)
    for begin, end in pairwise(ends):
        mask[begin:end, begin:end] = np.tri(end - begin, dtype=bool)
    return mask


@rows
@shares
@pytest.mark.parametrize("row_multiple", [1, 16])
def test_every_token_once_and_equal_shares(ends, num_ranks, order, row_multiple):
    placement = place(np.array(ends), num_ranks=num_ranks, order=order, row_multiple=row_multiple)
    parts = [placement.rows(rank) for rank in range(num_ranks)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(ends[-1]))
    assert all((np.diff(part) > 0).all() for part in parts)
    assert placement.tokens_per_rank % row_multiple == 0
    assert all(len(placement.chunks(r)) * placement.chunk_tokens == placement.tokens_per_rank for r in range(num_ranks))
    for rank, part in enumerate(parts):
        assert (placement.ranks_of(part) == rank).all()
    seen = visible(ends, ends[-1]).sum(1)
    per_rank = np.bincount(placement.owners_N, placement.work(np.array(ends)), num_ranks)
    assert per_rank.tolist() == [seen[part].sum() for part in parts]


@rows
@pytest.mark.parametrize(
    ("num_ranks", "order", "ranks_per_block"),
    [(1, "balanced", 1), (2, "zigzag", 1), (4, "balanced", 2), (8, "zigzag", 2), (16, "balanced", 4)],
)
def test_segments_are_the_mask(ends, num_ranks, order, ranks_per_block):
    """Of the whole row's keys at once, and of one block's keys after the other."""
    cu_seqlens = np.array(ends)
    placement = place(cu_seqlens, num_ranks=num_ranks, order=order)
    total = placement.tokens_per_rank * num_ranks
    want = visible(ends, total)

    def held(block: int) -> np.ndarray:
        chunks = np.flatnonzero(placement.owners_N // ranks_per_block == block)
        return (chunks[:, None] * placement.chunk_tokens + np.arange(placement.chunk_tokens)).ravel()

    blocks = range(num_ranks // ranks_per_block)
    for block in blocks:
        got = np.zeros((len(held(block)), total), bool)
        for q_start, q_len, k_start, k_len in placement.segments(cu_seqlens, block, ranks_per_block):
            causal = np.tri(q_len, k_len, k_len - q_len, dtype=bool)
            got[q_start : q_start + q_len, k_start : k_start + k_len] |= causal
        assert np.array_equal(got, want[held(block)])
        for keys_of in blocks:
            got = np.zeros((len(held(block)), len(held(keys_of))), bool)
            for q_start, q_len, k_start, k_len in placement.ring_segments(cu_seqlens, block, keys_of, ranks_per_block):
                mask = np.tri(q_len, k_len, k_len - q_len, dtype=bool) if keys_of == block else True
                got[q_start : q_start + q_len, k_start : k_start + k_len] |= mask
            assert np.array_equal(got, want[held(block)][:, held(keys_of)])


def test_a_placement_by_hand():
    """16 tokens of one document, 2 ranks of 2 chunks of 4: work 10, 26, 42, 58 goes 58 + 10 against 42 + 26."""
    placement = place(np.array([0, 16]), num_ranks=2, num_chunks=2)
    assert placement.owners_N.tolist() == [0, 1, 1, 0]
    assert placement.imbalance(np.array([0, 16])) == 1.0
    assert placement.segments(np.array([0, 16]), 1).tolist() == [[0, 8, 0, 12]]


def test_long_rows_are_balanced():
    """Of documents of all lengths; zigzag is not, which is why it is not the default."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        ends = np.unique(np.append(rng.integers(1, 131072, rng.integers(1, 200)), [0, 131072]))
        assert place(ends, num_ranks=8).imbalance(ends) <= MAX_IMBALANCE
    assert place(ends, num_ranks=8, order="zigzag").imbalance(ends) > MAX_IMBALANCE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cu_seqlens": [0, 3], "num_ranks": 0}, "num_ranks is 0"),
        ({"cu_seqlens": [0, 3], "num_ranks": 1, "row_multiple": 0}, "row_multiple 0"),
        ({"cu_seqlens": [1, 3], "num_ranks": 1}, r"cu_seqlens is \[1, 3\]"),
        ({"cu_seqlens": [0, 3, 2], "num_ranks": 1}, r"cu_seqlens is \[0, 3, 2\]"),
    ],
)
def test_what_cannot_be_placed_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        place(**arguments)
