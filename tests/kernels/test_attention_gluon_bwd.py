"""Gradients of the Gluon kernels for sm_90, on a CPU: keys that several segments share, many schedules, other places in
the pack. Those of documents are checked with forward in test_attention_gluon.py."""

import pytest
import torch

from eagle_kernels.attention import _varlen_attention
from tests.kernels.gluon import OVERLAPPING, check, machine, ours, qkv
from tests.kernels.plans import plan_of, plan_of_segments
from tests.numerics import outputs_and_grads, randn

LONG = [pytest.param(128, False, marks=pytest.mark.slow), pytest.param(72, True, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("D", "causal"), [(128, True), (72, False), *LONG])
def test_overlapping_segments(D, causal):
    check(plan_of_segments(OVERLAPPING, 152, 140, causal=causal), (1, 1), D, causal)


@pytest.mark.slow
@pytest.mark.parametrize("D", [128, 72, 64])
def test_fifty_schedules(D):
    plan = plan_of([65, 0, 1, 130])
    inputs = qkv(plan, (2, 1), D)
    douts = [randn(196, 2, D, dtype=torch.bfloat16).detach(), randn(2, 196).detach()]
    with machine():
        first = outputs_and_grads(ours(plan, True), inputs, douts)
        for _ in range(49):
            assert all(map(torch.equal, outputs_and_grads(ours(plan, True), inputs, douts), first))


@pytest.mark.parametrize("D", [72, pytest.param(128, marks=pytest.mark.slow)])
def test_a_document_does_not_see_its_neighbours(D):
    """The same bits wherever it lies in the pack, with NaN and inf in the rows before and after it."""
    H, K, length = 2, 1, 70
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
