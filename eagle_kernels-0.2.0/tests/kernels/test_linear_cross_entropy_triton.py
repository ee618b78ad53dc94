"""The kernels of linear cross-entropy by themselves; what they add up to is tested through the op."""

import pytest
import torch

from eagle_kernels.linear_cross_entropy import _statistics
from eagle_kernels.linear_cross_entropy_triton import matmul, softmax
from tests.kernels.op_checks import far_rows
from tests.numerics import randn


def test_logits_beyond_32_bits(device):
    logits = randn(3, 70, dtype=torch.float16, device=device).detach()
    labels, scales = torch.tensor([0, 5, 69], device=device), torch.ones(3, device=device)
    far, num_labelled = far_rows(logits), torch.tensor(3, device=device)
    stats, far_stats = _statistics(3, scales), _statistics(3, scales)
    softmax(logits, labels, scales, stats, num_labelled, 0, read=True, grad=True)
    softmax(far, labels, scales, far_stats, num_labelled, 0, read=True, grad=True)
    assert all(torch.equal(a, b) for a, b in zip(stats, far_stats, strict=True))
    assert torch.equal(far, logits)  # both now hold the gradient
    assert logits[2, 69] < 0


@pytest.mark.parametrize("over_tokens", [False, True])
@pytest.mark.parametrize("far_one", ["a", "b", "out"])
def test_matmuls_beyond_32_bits(far_one, over_tokens, device):
    """Each operand with its rows 2**30 elements apart: the third starts where 32 bits end."""
    a, b, out = (randn(3, 3, dtype=torch.float16, device=device, seed=i).detach() for i in range(3))
    out, num_labelled = out.float(), torch.tensor(3, device=device)
    want = (a @ b).float() + (out if over_tokens else 0)
    given = {"a": a, "b": b, "out": out}
    given[far_one] = far_rows(given[far_one])
    matmul(*given.values(), num_labelled, 0, over_tokens=over_tokens, group=8)
    torch.testing.assert_close(given["out"], want, rtol=0, atol=4e-3)


@pytest.mark.parametrize(("start", "labelled_rows"), [(0, 130), (64, 66), (128, 2), (130, 0), (192, 0)])
def test_ignored_tokens_are_not_multiplied(start, labelled_rows, device):
    """A chunk of 140 tokens with 130 labelled in all: what lies after them is neither read (NaN) nor written."""
    num_labelled = torch.tensor(130, device=device)
    a, b = randn(140, 20, device=device).detach(), randn(20, 70, device=device, seed=1).detach()
    a[labelled_rows:] = torch.nan
    out = torch.full((140, 70), 7.0, device=device)
    matmul(a, b, out, num_labelled, start, over_tokens=False, group=2)
    torch.testing.assert_close(out[:labelled_rows], a[:labelled_rows] @ b)
    assert (out[labelled_rows:] == 7).all()
    g = randn(140, 70, device=device, seed=2).detach()
    g[labelled_rows:] = torch.nan
    total = torch.ones(70, 20, device=device)
    matmul(g.T, a, total, num_labelled, start, over_tokens=True, group=2)
    torch.testing.assert_close(total, 1 + g[:labelled_rows].T @ a[:labelled_rows], rtol=1e-4, atol=1e-4)
    stats, labels, scales = _statistics(140, g), torch.zeros(140, dtype=torch.int64, device=device), g.new_ones(140)
    softmax(out, labels, scales, stats, num_labelled, start, read=True, grad=True)
    assert (out[labelled_rows:] == 7).all()
    assert not any(t[labelled_rows:].any() for t in stats)


@pytest.mark.parametrize(
    ("M", "N", "K", "group"), [(1, 1, 1, 1), (70, 200, 33, 1), (200, 70, 65, 3), (300, 130, 40, 8)]
)
def test_every_tile_once(M, N, K, group, device):
    """Whatever the order of the tiles, and with more tiles than programs."""
    a, b = randn(M, K, device=device).detach(), randn(K, N, device=device, seed=1).detach()
    out, num_labelled = torch.zeros(M, N, device=device), torch.tensor(10_000, device=device)
    for times in (1, 2):
        matmul(a, b, out, num_labelled, 0, over_tokens=True, group=group)
        torch.testing.assert_close(out, times * (a @ b), rtol=1e-4, atol=1e-4)
