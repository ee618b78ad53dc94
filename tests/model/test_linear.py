"""The door for linear layers: what comes out is torch's linear layer, with its bias or with the bias left to an op."""

import pytest
import torch
from torch import nn

from eagle_kernels.gelu_bias import gelu_bias
from eagle_model.model.linear import linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("skip_bias_add", [True, False])
def test_has_the_weights_of_torchs_layer(bias, skip_bias_add):
    ours, theirs = linear(5, 3, bias=bias, skip_bias_add=skip_bias_add), nn.Linear(5, 3, bias=bias)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 5)
    want = theirs(x) - theirs.bias if bias and skip_bias_add else theirs(x)
    torch.testing.assert_close(ours(x), want)


def test_a_bias_left_out_is_added_and_learned_by_the_op():
    torch.manual_seed(0)
    ours, theirs = linear(5, 3, skip_bias_add=True), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 5)
    out, want = gelu_bias(ours(x), ours.bias), nn.functional.gelu(theirs(x), approximate="tanh")
    torch.testing.assert_close(out, want)
    out.square().sum().backward()
    want.square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)


def test_a_hook_sees_the_call():
    layer = linear(5, 3, skip_bias_add=True)
    layer.register_forward_hook(lambda module, inputs, out: out + 1)
    x = torch.randn(4, 5)
    torch.testing.assert_close(layer(x), x @ layer.weight.T + 1)
