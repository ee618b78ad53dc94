"""Gradients of the Gluon kernels for sm_90, on a CPU: keys that several segments share, other places in the pack. Those
of documents are checked with forward in test_attention_gluon.py; many schedules in test_hopper_attention.py."""

import pytest
import torch

from eagle_kernels.attention import _varlen_attention
from tests.kernels.gluon import OVERLAPPING, check, machine
from tests.kernels.plans import plan_of, plan_of_segments
from tests.numerics import randn


@pytest.mark.parametrize(("D", "causal"), [(128, True), (72, False)])
def test_overlapping_segments(D, causal):
    check(plan_of_segments(OVERLAPPING, 152, 140, causal=causal), (1, 1), D, causal)


def test_a_document_does_not_see_its_neighbours():
    """The same bits wherever it lies in the pack, with NaN and inf in the rows before and after it."""
    H, K, D, length = 2, 1, 72, 70
    inputs = [randn(length, heads, D, dtype=torch.bfloat16, seed=s).detach() for s, heads in enumerate((H, K, K))]
    dout = randn(length, H, D, dtype=torch.bfloat16, seed=3).detach()

    def run(before, after, bad):
        packed = [
            torch.cat([torch.full_like(x[:before], bad), x, torch.full_like(x[:after], bad)]) for x in (*inputs, dout)
        ]
        plan = plan_of([before, length, after])
        with machine():
            q, k, v = (x.requires_grad_() for x in packed[:3])
            out, _ = _varlen_attention(q, k, v, plan, True, 0.1)
            out.backward(packed[3])
        return [x[before : before + length] for x in (out.detach(), q.grad, k.grad, v.grad)]

    alone = run(0, 0, 0.0)
    assert all(x.isfinite().all() for x in alone)
    for before, after, bad in ((3, 60, torch.nan), (65, 1, torch.inf)):
        assert all(map(torch.equal, run(before, after, bad), alone))
