"""Rows of the native code are those of the plain one; nothing lost, nothing over, few rows, and fast."""

import math
import random
import time

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from eagle_kernels.pack_rows import pack_rows, pack_rows_ref


@st.composite
def problems(draw) -> tuple[list[int], int]:
    capacity = draw(st.one_of(st.integers(1, 300), st.sampled_from([4096, 4097, 262_143, 262_144])))
    shortest = draw(st.integers(1, capacity))
    longest = draw(st.integers(shortest, capacity))
    lengths = draw(st.lists(st.integers(shortest, longest), max_size=60))
    return sorted(lengths, reverse=True) if draw(st.booleans()) else lengths, capacity


@given(problems())
@example(([], 1))
@example(([7] * 7, 7))
@example(([63, 1, 64, 64], 64))
def test_rows_are_the_plain_code_s(problem: tuple[list[int], int]) -> None:
    lengths, capacity = problem
    lengths_N = torch.tensor(lengths, dtype=torch.int64)
    rows_N = pack_rows(lengths_N, capacity)
    assert torch.equal(rows_N, pack_rows_ref(lengths_N, capacity))
    rows = rows_N.tolist()
    assert set(rows) == set(range(max(rows, default=-1) + 1))
    filled = [0] * len(set(rows))
    for row, length in zip(rows, lengths, strict=True):
        filled[row] += length
    assert max(filled, default=0) <= capacity
    assert len(filled) >= math.ceil(sum(lengths) / capacity)
    if lengths == sorted(lengths, reverse=True):  # best fit decreasing's bound
        assert len(filled) <= 11 / 9 * _fewest(lengths, capacity) + 1


def _fewest(lengths: list[int], capacity: int) -> int:
    """No packing has fewer: of tokens, or of samples of which no two fit together."""
    return max(math.ceil(sum(lengths) / capacity), sum(2 * length > capacity for length in lengths))


def test_many_samples_and_rows_as_the_plain_code_has_them() -> None:
    rng = random.Random(0)
    lengths = [rng.choice([rng.randint(1, 900), rng.randint(900, 131_072)]) for _ in range(3000)]
    lengths_N = torch.tensor(sorted(lengths, reverse=True))
    assert torch.equal(pack_rows(lengths_N, 131_072), pack_rows_ref(lengths_N, 131_072))


def test_a_million_lengths_take_less_than_five_seconds() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths_N = torch.randint(1, 32_769, (1_000_000,), generator=generator).sort(descending=True).values
    begin = time.process_time()
    rows_N = pack_rows(lengths_N, 32_768)
    assert time.process_time() - begin < 5  # about 0.7 on an idle core
    filled = torch.zeros(int(rows_N.max()) + 1, dtype=torch.int64).scatter_add_(0, rows_N.long(), lengths_N)
    assert filled.max() <= 32_768 and filled.float().mean() / 32_768 > 0.99


@pytest.mark.parametrize(
    ("lengths", "capacity", "message"),
    [
        ([3, 9], 8, r"sample 1 has 9 tokens; needs 1 to 8\."),
        ([0], 8, r"sample 0 has 0 tokens; needs 1 to 8\."),
        ([1], 0, r"capacity is 0; needs 1 to 67108864\."),
        ([1], 2**26 + 1, r"capacity is 67108865; needs 1 to"),
    ],
)
def test_refuses_lengths_and_capacities(lengths: list[int], capacity: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^pack_rows: {message}"):
        pack_rows(torch.tensor(lengths), capacity)


def test_refuses_other_tensors() -> None:
    for wrong in (torch.tensor([1], dtype=torch.int32), torch.ones(2, 2, dtype=torch.int64), torch.ones(6).long()[::2]):
        with pytest.raises(ValueError, match="pack_rows: lengths needs contiguous int64 of shape"):
            pack_rows(wrong, 8)
