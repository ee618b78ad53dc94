"""The Gluon kernels for sm_90, forward and backward, on a CPU: as good as torch for each kind of plan, the same bits by
other schedules."""

import pytest
import torch

from eagle_kernels.attention_plan import AttentionPlan
from tests.kernels.gluon import check
from tests.kernels.plans import plan_of


@pytest.mark.parametrize(("D", "heads"), [(128, (7, 1)), (72, (2, 2)), (64, (2, 1))])
def test_documents(D, heads):
    check(plan_of([65, 0, 1, 130]), heads, D, True)


LONG = [pytest.param(128, False, marks=pytest.mark.slow), pytest.param(72, True, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("D", "causal"), [(128, True), (72, False), *LONG])
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


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads", [(1, 1), (7, 1)])
@pytest.mark.parametrize("D", [128, 72, 64])
@pytest.mark.parametrize("k_lens", [None, [5, 200, 63, 0, 300, 1, 129, 77]])
def test_every_length(D, heads, causal, k_lens):
    check(plan_of([0, 1, 63, 64, 65, 127, 129, 300], k_lens, causal=causal), heads, D, causal)
