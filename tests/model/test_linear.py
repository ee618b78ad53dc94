"""Linear layers: torch's own, and one that leaves its bias to the op that follows."""

import pytest
import torch
from torch import nn

from eagle_kernels.gelu_bias import gelu_bias
from eagle_model.model.config import tiny
from eagle_model.model.eagle import build
from eagle_model.model.linear import Linear, LinearSkipBiasAdd


@pytest.mark.parametrize("kind", [Linear, LinearSkipBiasAdd])
@pytest.mark.parametrize("bias", [True, False])
def test_is_torchs_layer_with_its_bias_or_without(kind, bias):
    ours, theirs = kind(5, 3, bias=bias), nn.Linear(5, 3, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 5)
    want = theirs(x) - theirs.bias if bias and kind is LinearSkipBiasAdd else theirs(x)
    torch.testing.assert_close(ours(x), want)


def test_a_bias_left_out_is_added_and_learned_by_the_op():
    torch.manual_seed(0)
    ours, theirs = LinearSkipBiasAdd(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 5)
    out, want = gelu_bias(ours(x), ours.bias), nn.functional.gelu(theirs(x), approximate="tanh")
    torch.testing.assert_close(out, want)
    out.square().sum().backward()
    want.square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)


def test_every_projection_is_one_of_them():
    """So that who replaces them by class has all of them, and not the output head."""
    model = build(tiny(vocab_size=97, image_token_id=96))
    kinds = {name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    others = {name for name, kind in kinds.items() if kind not in (Linear, LinearSkipBiasAdd)}
    assert others == {"lm_head"}
    assert len(kinds) == 1 + 2 * 6 + 2 + 3 * 7 + 1
