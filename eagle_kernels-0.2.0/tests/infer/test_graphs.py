"""Steps of a fixed size give what steps of any size give; captured, on a GPU, too."""

import copy

import pytest
import torch

from eagle_model.infer.forward import Forward
from eagle_model.infer.graphs import Decode, Graphs
from eagle_model.infer.schedule import Sequence, Work
from tests.infer.small import model


@pytest.mark.parametrize("captured", [False, pytest.param(True, marks=pytest.mark.gpu)])
def test_a_step_of_a_fixed_size_is_the_same_step(captured):
    """Three sequences in a step for four, then two in the same one; rows that nobody has hold NaN."""
    device = "cuda" if captured else "cpu"
    ours = copy.deepcopy(model()).to(device)
    forward = Forward(ours, num_blocks=9)
    forward.graphs = None
    forward.cache.keys_NLKW.fill_(torch.nan)
    forward.cache.values_NLKW.fill_(torch.nan)
    sequences = [
        Sequence([7, 8, 9] * 6, 17, blocks=[4, 2]),
        Sequence([5, 6], 1, blocks=[1]),
        Sequence([3] * 40, 39, blocks=[0, 7, 8]),
    ]
    for one in sequences:
        forward(ours, [(Work(one, 0, len(one.token_ids) - 1), None)])
        one.num_computed = len(one.token_ids) - 1
    graphs = Graphs(forward.cache)
    for some in (sequences, sequences[1:]):
        works = [(Work(one, len(one.token_ids) - 1, len(one.token_ids)), None) for one in some]
        want_SV = forward(ours, works)
        forward.graphs = graphs
        torch.testing.assert_close(forward(ours, works), want_SV)
        forward.graphs = None
    assert len(graphs._found) == 2
    assert all((decode._graph is not None) == captured for decode in graphs._found.values())


def test_what_is_not_there_writes_nowhere():
    forward = Forward(model(), num_blocks=3)
    decode = Decode(model(), forward.cache, num_sequences=4, longest=32)
    decode.fill(
        torch.tensor([5]), torch.tensor([0]), torch.tensor([16]), torch.tensor([[16]]), torch.tensor([1])
    )  # fmt: skip
    assert decode.run().shape[0] == 1
    written = forward.cache.keys_NLKW.abs().sum((0, 2, 3)).nonzero().flatten().tolist()
    assert written == [16, 48]  # the sequence's row, and one of the last block
