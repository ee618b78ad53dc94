"""The Gluon kernels for sm_90, forward and backward, on a CPU: as good as torch for each kind of plan, the same bits by
other schedules. Documents of every length and kind: test_hopper_attention.py."""

import pytest
import torch

from eagle_kernels.attention_plan import AttentionPlan
from tests.kernels.gluon import check
from tests.kernels.plans import plan_of


@pytest.mark.parametrize(("D", "heads"), [(128, (7, 1)), (72, (2, 2)), (64, (2, 1))])
def test_documents(D, heads):
    check(plan_of([65, 0, 1, 130]), heads, D, True)


@pytest.mark.parametrize(("D", "causal"), [(128, True), (72, False)])
def test_keys_of_other_lengths(D, causal):
    check(plan_of([70, 1, 64, 3], [20, 140, 0, 3], causal=causal), (1, 1), D, causal)


@pytest.mark.parametrize("length", [150, pytest.param(128, marks=pytest.mark.slow)])
@pytest.mark.parametrize("causal", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_uniform_plans(causal, length):
    """Two programs with three items each, or six: the rings go on from item to item."""
    check(AttentionPlan.uniform(3, length, device="cpu"), (1, 1), 72, causal)


@pytest.mark.slow
def test_fp16():
    check(plan_of([40, 30]), (2, 1), 72, True, dtype=torch.float16)
