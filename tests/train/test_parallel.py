"""Layouts: one process, and nothing that pretends to be more."""

import pytest

from eagle_model.model.config import tiny
from eagle_model.model.eagle import build
from eagle_model.train.parallel import Layout, parallelize


def test_one_process_has_the_whole_model():
    model = build(tiny(vocab_size=97, image_token_id=96))
    shapes = {name: p.shape for name, p in model.named_parameters()}
    placed = parallelize(model, Layout())
    assert placed is model
    assert {name: p.shape for name, p in placed.named_parameters()} == shapes
    assert all(p.is_meta for p in placed.parameters())


@pytest.mark.parametrize("sizes", [{"data": 2}, {"context": 4}, {"data": 0}])
def test_more_than_one_process_is_refused(sizes):
    ((name, size),) = sizes.items()
    with pytest.raises(ValueError, match=f"Layout: {name} is {size}; needs 1, as training takes one process so far"):
        Layout(**sizes)
