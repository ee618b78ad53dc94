"""The loss of a head that stays cut, against the whole head; in a model: tests/train/test_parallel.py."""

import pytest
import torch

from eagle_model.batch import IGNORE_INDEX
from eagle_model.model.loss import LMHead
from eagle_model.model.shards import own, rows_of
from eagle_model.train.layout import Layout
from eagle_model.train.parallel import _cut_head
from eagle_model.train.ranks import start
from tests.ranks import run

D, V = 6, 11


def tokens(rank: int, num_tokens: int, num_labelled: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rank)
    hidden_TD = torch.randn(num_tokens, D, generator=generator, dtype=torch.float64)
    labels_T = torch.randint(0, V, (num_tokens,), generator=generator)
    labels_T[torch.randperm(num_tokens, generator=generator)[num_labelled:]] = IGNORE_INDEX
    weights_T = torch.rand(num_tokens, generator=generator, dtype=torch.float64)
    return hidden_TD.requires_grad_(), labels_T, torch.where(labels_T == IGNORE_INDEX, 0, weights_T)


def head_of() -> LMHead:
    torch.manual_seed(9)
    return LMHead(D, V).double()


def against_one(counts: list[list[int]]) -> list[float]:
    """Differences of the loss, each token's, hidden's gradient, and this process's rows of the weight's."""
    ranks = start(Layout(shard=len(counts)), "cpu")
    head, plain = head_of(), head_of()
    _cut_head(head, ranks.mesh)
    seen = []
    head.on_losses = plain.on_losses = seen.append
    mine = tokens(ranks.rank, *counts[ranks.rank])
    loss = head(*mine)
    loss.backward()
    for rank in range(len(counts)):  # the whole step in one process
        theirs = tokens(rank, *counts[rank])
        want = plain(*theirs)
        want.backward()
        if rank == ranks.rank:
            found = [float((loss - want).abs()), float((seen[0] - seen[-1]).abs().sum())]
            found.append(float((mine[0].grad - theirs[0].grad).abs().max()))
    grad = own(head.weight.grad) - plain.weight.grad[slice(*rows_of(head.weight))]
    with torch.no_grad():
        logits = float((head(mine[0]) - plain(mine[0])).abs().max())
    return [*found, float(grad.abs().max()), logits]


@pytest.mark.parametrize("counts", [[[7, 4], [3, 3]], [[5, 0], [9, 8]], [[4, 0], [2, 0]]], ids=["some", "one", "none"])
def test_loss_and_gradients_are_those_of_the_whole_head(counts):
    for differences in run(against_one, 2, counts):
        assert max(differences) < 1e-12
