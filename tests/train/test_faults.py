"""Planted faults: each is found where it shows first, and gone after its block."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist

from eagle_model.model import exchange
from eagle_model.train import verify
from eagle_model.train.faults import FAULTS
from eagle_model.train.ranks import Ranks
from tests.ranks import run


def all_of_them() -> dict[str, Any]:
    return {o.case.fault or "": [o.stage, str(o), o.is_right] for o in verify.prove(verify.faults())}


def test_every_fault_is_found_where_it_shows_first() -> None:
    (found,) = run(all_of_them, 1)
    assert {name: stage for name, (stage, _, _) in found.items()} == {name: f.stage for name, f in FAULTS.items()}
    assert all(is_right for _, _, is_right in found.values())
    towers = {name: says.partition(" on rank")[0] for name, (_, says, _) in found.items()}
    assert (
        towers["no backward through the gather of keys"] == "gradient of layer 1's input (the language model, backward)"
    )
    assert towers["visual tokens in another order"] == "embeddings (the exchange of visual tokens)"
    assert towers["gradients of weights averaged"] == "gradients of lm_head (lm_head)"


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_with_its_block(name: str) -> None:
    def functions() -> list[Any]:
        reduce = getattr(dist, "reduce_scatter_single", None), dist.reduce_scatter_tensor
        return [exchange.start_sum, exchange.finish_sum, exchange.exchange, Ranks.total, *reduce]

    before = functions()
    with FAULTS[name].plant():
        assert functions() != before
    assert functions() == before
