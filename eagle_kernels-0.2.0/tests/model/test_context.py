"""A rank's share of a row. What it does in a model: tests/train/test_context_parallel.py, against one process."""

import torch

from eagle_model.model.attend import Spread
from eagle_model.model.context import Context
from eagle_model.model.exchange import VisualExchange


def test_numbers_of_own_rows_become_those_of_the_row():
    spread = Spread(
        plans=(),
        block=0,
        num_blocks=2,
        within=None,
        between=None,
        in_block=None,
        in_row=torch.arange(2),
        chunk_tokens=1,
    )
    context = Context(
        rank=0,
        num_ranks=2,
        attend=spread,
        rows_R=torch.tensor([1, 4]),
        tokens_per_rank=3,
        num_labelled=2,
        visual=VisualExchange(group=None, order_N=torch.arange(0), send=(0, 0), receive=(0, 0)),  # type: ignore[arg-type]
        visual_rows_M=torch.arange(0),
    )
    assert context.whole(torch.tensor([2.0, 3.0]), 6).tolist() == [0, 2, 0, 0, 3, 0]
