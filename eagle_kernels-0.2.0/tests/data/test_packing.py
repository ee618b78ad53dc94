"""Packing: nothing lost, nothing over, few rows, all about equally full, different every epoch; and the row itself."""

import itertools
import json
import math
import random
import time
from bisect import insort
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from eagle_model.batch import IGNORE_INDEX
from eagle_model.data.chat import TokenizedSample
from eagle_model.data.packing import pack, pack_row

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "packing.json").read_text())
CAPACITY = 32_768


def first_fit_decreasing(lengths: list[int], capacity: int) -> int:
    """The oracle: how many rows the textbook's rule needs."""
    left: list[int] = []
    for length in sorted(lengths, reverse=True):
        row = next((k for k, room in enumerate(left) if room >= length), None)
        if row is None:
            left.append(capacity - length)
        else:
            left[row] -= length
    return len(left)


def mixed_lengths(num_samples: int, seed: int = 0) -> list[int]:
    """Videos that ADS has cut to the context, images at many tiles, and plain text."""
    rng = random.Random(seed)

    def one() -> int:
        kind = rng.random()
        if kind < 0.2:
            return rng.randint(CAPACITY - 300, CAPACITY)
        if kind < 0.5:
            return rng.randint(256, CAPACITY)
        return min(CAPACITY, 16 + int(rng.lognormvariate(6.5, 1.0)))

    return [one() for _ in range(num_samples)]


def fills(rows: list[list[int]], lengths: list[int]) -> list[int]:
    return [sum(lengths[i] for i in row) for row in rows]


def pairs(rows: list[list[int]]) -> set[tuple[int, int]]:
    return {pair for row in rows for pair in itertools.combinations(sorted(row), 2)}


@pytest.mark.parametrize("case", GOLDEN["packs"], ids=lambda case: str(case["lengths"]))
@pytest.mark.parametrize("seed", range(5))
def test_golden_rows(case, seed):
    rows = pack(case["lengths"], case["capacity"], seed=seed)
    as_lengths = [sorted((case["lengths"][i] for i in row), reverse=True) for row in rows]
    assert sorted(as_lengths) == sorted(case["rows"])


@st.composite
def problems(draw) -> tuple[list[int], int]:
    capacity = draw(st.integers(1, 100))
    shortest = draw(st.integers(1, capacity))
    longest = draw(st.integers(shortest, capacity))
    return draw(st.lists(st.integers(shortest, longest), max_size=80)), capacity


@given(problems(), st.integers(0, 2**32))
@example(([], 1), 0)
@example(([7] * 7, 7), 0)
def test_nothing_lost_nothing_over_few_rows(problem, seed):
    lengths, capacity = problem
    rows = pack(lengths, capacity, seed=seed)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(0 < fill <= capacity for fill in fills(rows, lengths))
    assert math.ceil(sum(lengths) / capacity) <= len(rows) <= 1.05 * first_fit_decreasing(lengths, capacity) + 1
    assert rows == pack(lengths, capacity, seed=seed)


@pytest.mark.parametrize("seed", range(2))
def test_ten_thousand_mixed_lengths_fill_rows_evenly(seed):
    lengths = mixed_lengths(10_000, seed)
    filled = fills(pack(lengths, CAPACITY, seed=seed), lengths)
    assert sum(lengths) / (len(filled) * CAPACITY) >= 0.99
    assert (max(filled) - min(filled)) / CAPACITY <= 0.03
    assert len(filled) <= first_fit_decreasing(lengths, CAPACITY) * 1.002


def test_short_samples_level_the_rows():
    """Neither rule alone does both: best fit leaves a nearly empty row, worst fit needs more rows."""
    rng = random.Random(0)
    lengths = [rng.randint(50, 800) for _ in range(10_000)]
    filled = fills(pack(lengths, CAPACITY), lengths)
    assert len(filled) == math.ceil(sum(lengths) / CAPACITY)
    assert (max(filled) - min(filled)) / CAPACITY < 0.005

    best_fit: list[int] = []  # room left
    for length in sorted(lengths, reverse=True):
        k = next((k for k, room in enumerate(best_fit) if room >= length), None)
        insort(best_fit, (CAPACITY if k is None else best_fit.pop(k)) - length)
    assert (max(best_fit) - min(best_fit)) / CAPACITY > 0.5


@pytest.mark.parametrize("lowest", [0.2, 0.3, 0.34, 0.51])
def test_lengths_that_pack_badly_take_no_more_rows_than_first_fit(lowest):
    """Nothing is short enough to level with; worst fit alone would take up to a quarter more rows."""
    rng = random.Random(0)
    lengths = [rng.randint(int(lowest * CAPACITY), int((lowest + 0.3) * CAPACITY)) for _ in range(3000)]
    rows = pack(lengths, CAPACITY)
    assert len(rows) <= 1.01 * first_fit_decreasing(lengths, CAPACITY)


def test_each_seed_has_its_own_rows_and_order():
    lengths = mixed_lengths(2000)
    first, second = (pack(lengths, CAPACITY, seed=seed) for seed in (0, 1))
    assert abs(len(first) - len(second)) <= 0.005 * len(first)
    assert len(pairs(first) & pairs(second)) < 0.25 * len(pairs(first))  # few samples meet again
    assert first != sorted(first, key=lambda row: -max(lengths[i] for i in row))  # rows are not sorted by length
    orders = {tuple(map(tuple, pack([9, 9, 9, 9], 9, seed=seed))) for seed in range(50)}
    assert len(orders) > 12  # of 24


def test_a_hundred_thousand_lengths_take_seconds():
    lengths = mixed_lengths(100_000)
    started = time.process_time()
    rows = pack(lengths, CAPACITY)
    assert time.process_time() - started < 20  # about 3 on an idle core
    assert sum(map(len, rows)) == 100_000


@pytest.mark.parametrize(
    ("lengths", "capacity", "message"),
    [
        ([3, 9], 8, r"sample 1 has 9 tokens and a row holds 8\. Plan it with context_tokens no larger than the row"),
        ([3, 0], 8, r"sample 1 has length 0; needs at least 1 token\. Leave empty samples out\."),
        ([-2], 8, r"sample 0 has length -2; needs at least 1 token"),
        ([], 0, r"capacity is 0; needs at least 1 token\."),
    ],
)
def test_refuses(lengths, capacity, message):
    with pytest.raises(ValueError, match=f"^pack: {message}"):
        pack(lengths, capacity)


# The row


def sample_of(name: str, token_ids: list[int], labels: list[int], visual: list[int]) -> TokenizedSample:
    return TokenizedSample(name, torch.tensor(token_ids), torch.tensor(labels), torch.tensor(visual, dtype=torch.int64))


def test_pack_row_golden() -> None:
    x = IGNORE_INDEX
    patches_IPK = torch.randn(3, 4, 5)
    batch = pack_row(
        [
            sample_of("a", [10, 11, 12, 13], [x, x, 12, 13], [1]),
            sample_of("b", [20], [20], []),  # a label on a first token has no position to predict it from
            sample_of("c", [30, 31, 32], [x, 31, x], [0, 2]),
        ],
        patches_IPK,
    )
    assert batch.token_ids_T.tolist() == [10, 11, 12, 13, 20, 30, 31, 32]
    assert batch.labels_T.tolist() == [x, 12, 13, x, x, 31, x, x]
    assert batch.num_labelled == 3
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 0, 0, 1, 2]
    assert batch.cu_seqlens.tolist() == [0, 4, 5, 8]
    assert batch.visual_rows_N.tolist() == [1, 5, 7]
    assert batch.sample_ids == ("a", "b", "c")
    assert batch.patches_IPK is patches_IPK
    dtypes = [batch.token_ids_T.dtype, batch.labels_T.dtype, batch.visual_rows_N.dtype]
    assert dtypes == [torch.int64] * 3
    assert batch.positions_T.dtype == batch.cu_seqlens.dtype == torch.int32


def test_a_row_of_many_documents_is_linear() -> None:
    """128K tokens of one-word documents; the sums of their lengths, made anew for each, took minutes."""
    sample = sample_of("a", [1, 2, 3], [1, 2, 3], [])
    started = time.process_time()
    batch = pack_row([sample] * 40_000, torch.empty(0, 1, 1))
    assert time.process_time() - started < 10  # about 1 on an idle core
    assert batch.cu_seqlens.tolist() == list(range(0, 120_001, 3))


def test_empty_row_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples; needs at least one"):
        pack_row([], torch.empty(0, 1, 1))
