"""Square-root weights: the golden numbers, and that rows of a step count as one."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_model.batch import IGNORE_INDEX
from eagle_model.model.loss import LMHead, sqrt_mass, supervised_counts, token_weights


def row(*documents: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and cu_seqlens of documents of (unsupervised, supervised) tokens."""
    labels = [label for given, learned in documents for label in [IGNORE_INDEX] * given + [7] * learned]
    ends = torch.tensor([0, *(given + learned for given, learned in documents)]).cumsum(0)
    return torch.tensor(labels, dtype=torch.int64), ends.int()


def test_golden_weights():
    labels, cu_seqlens = row((2, 4), (0, 16), (3, 1))
    weights = token_weights(labels, cu_seqlens)
    assert weights.dtype == torch.float32
    expected = [0.0] * 2 + [1 / 14] * 4 + [1 / 28] * 16 + [0.0] * 3 + [1 / 7]
    torch.testing.assert_close(weights, torch.tensor(expected))
    assert sqrt_mass(labels, cu_seqlens) == 7
    assert supervised_counts(labels, cu_seqlens).tolist() == [4, 16, 1]
    masses = [float(part.sum()) for part in weights.split([6, 16, 4])]
    assert masses == pytest.approx([2 / 7, 4 / 7, 1 / 7])


def test_golden_weights_of_answer_turns():
    """Three answers in one document weigh as three documents; two runs that touch are apart where documents are."""
    labels, cu_seqlens = row((2, 4), (1, 16), (3, 1))
    weights = token_weights(labels, torch.tensor([0, 27], dtype=torch.int32), per="turn")
    expected = [0.0] * 2 + [1 / 14] * 4 + [0.0] + [1 / 28] * 16 + [0.0] * 3 + [1 / 7]
    torch.testing.assert_close(weights, torch.tensor(expected))
    assert sqrt_mass(labels, cu_seqlens, per="turn") == 7
    touching, ends = row((0, 4), (0, 16), (3, 1), (0, 0))
    torch.testing.assert_close(token_weights(touching, ends, per="turn"), token_weights(touching, ends))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 9)), min_size=1, max_size=4), min_size=1, max_size=4)
)
def test_turns_are_what_a_loop_finds(documents):
    """Documents of turns of (given, learned) tokens."""
    parts = [row(*turns) for turns in documents]
    labels = torch.cat([part for part, _ in parts])
    ends = torch.tensor([0, *(part.numel() for part, _ in parts)]).cumsum(0).int()
    lengths = [learned for turns in documents for _, learned in turns if learned]
    weights = token_weights(labels, ends, per="turn")
    mass = sum(n**0.5 for n in lengths)
    expected: list[float] = []
    for given_, n in (turn for turns in documents for turn in turns):
        expected += [0.0] * given_ + [max(n, 1) ** -0.5 / (mass or 1)] * n
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float32))
    assert float(sqrt_mass(labels, ends, per="turn")) == pytest.approx(mass)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 60)), min_size=1, max_size=6), min_size=1, max_size=4)
)
def test_rows_weigh_as_one_long_row(rows):
    """Weights add up to 1 over a step, and do not depend on how its documents fall into rows."""
    step = [row(*documents) for documents in rows]
    mass = torch.stack([sqrt_mass(*r) for r in step]).sum()
    apart = torch.cat([token_weights(*r, mass) for r in step])
    together = token_weights(*row(*(document for documents in rows for document in documents)))
    torch.testing.assert_close(apart, together)
    supervised = sum(learned for documents in rows for _, learned in documents)
    assert float(apart.sum()) == pytest.approx(1.0 if supervised else 0.0, abs=1e-5)


def test_a_document_without_labels_changes_nothing():
    labels, cu_seqlens = row((2, 4), (5, 0), (0, 16))
    weights = token_weights(labels, cu_seqlens)
    assert (weights[6:11] == 0).all()
    torch.testing.assert_close(weights[weights > 0], token_weights(*row((0, 4), (0, 16))))


def test_loss_is_the_formula_and_its_gradient():
    torch.manual_seed(0)
    labels, cu_seqlens = row((2, 4), (0, 9), (3, 1))
    labels = torch.where(labels == 7, torch.arange(labels.numel()) % 11, labels)
    hidden = torch.randn(labels.numel(), 8, requires_grad=True)
    head = LMHead(8, 11)
    loss = head(hidden, labels, token_weights(labels, cu_seqlens, sqrt_mass(labels, cu_seqlens)))

    losses = F.cross_entropy(hidden.double() @ head.weight.double().T, labels, reduction="none")
    means = [part[part > 0].mean() for part in losses.split([6, 9, 4])]  # of each document
    expected = sum(m * n**0.5 for m, n in zip(means, (4, 9, 1), strict=True)) / 6
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected)
    got = torch.autograd.grad(loss, (hidden, head.weight))
    for ours, true in zip(got, torch.autograd.grad(expected, (hidden, head.weight)), strict=True):
        torch.testing.assert_close(ours, true)


def test_no_labels_at_all_is_loss_zero_with_zero_gradients():
    labels, cu_seqlens = row((5, 0), (3, 0))
    hidden, head = torch.randn(8, 4, requires_grad=True), LMHead(4, 11)
    loss = head(hidden, labels, token_weights(labels, cu_seqlens, sqrt_mass(labels, cu_seqlens)))
    assert loss == 0
    for grad in torch.autograd.grad(loss, (hidden, head.weight)):
        assert (grad == 0).all()


def test_the_head_gives_the_logits_whose_loss_it_computes():
    torch.manual_seed(0)
    hidden, head = torch.randn(6, 8), LMHead(8, 11)
    labels = torch.tensor([3, IGNORE_INDEX, 0, 10, IGNORE_INDEX, 7])
    assert torch.equal(head(hidden), hidden @ head.weight.T)
    torch.testing.assert_close(head(hidden, labels), F.cross_entropy(head(hidden), labels))
