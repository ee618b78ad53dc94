"""Linear layers are found by their class, and compute as their product says."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eagle_model.model.config import tiny
from eagle_model.model.eagle import build
from eagle_model.model.linear import FusedLinear, Linear, Product, checkpoint


def test_every_projection_is_one():
    """So that who replaces them by class has all of them, and not the output head."""
    model = build(tiny(vocab_size=97, image_token_id=96))
    kinds = {name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    others = {name for name, kind in kinds.items() if not issubclass(kind, Linear)}
    assert others == {"lm_head"}
    assert len(kinds) == 1 + 2 * 4 + 2 + 3 * 4 + 1
    fused = {name.split(".")[-1] for name, kind in kinds.items() if kind is FusedLinear}
    assert fused == {"qkv_proj", "gate_up_proj"}


class Doubled(Product):
    """Twice the product, and a note of what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, x_TC, weight_FC, bias_F):
        self.asked.append("product")
        return 2 * F.linear(x_TC, weight_FC, bias_F)

    def checkpoint(self, layer, *args):
        self.asked.append("checkpoint")
        return layer(*args)


def test_a_product_takes_the_place_of_torch_s_and_the_weight_stays():
    torch.manual_seed(0)
    linear, x = Linear(4, 3), torch.randn(2, 4)
    plain = linear(x)
    linear.product = Doubled()
    assert torch.equal(linear(x), 2 * plain)
    assert list(linear.state_dict()) == ["weight", "bias"]
    assert not list(linear.children())


@pytest.mark.parametrize("has_product", [False, True])
def test_a_layer_is_computed_again_as_its_products_say(has_product):
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(4, 4), Linear(4, 4), nn.GELU(), Linear(4, 1))
    product, calls = Doubled(), []
    layer.register_forward_pre_hook(lambda *args: calls.append(1))
    if has_product:
        layer[3].product = product
    x = torch.randn(2, 4, requires_grad=True)
    checkpoint(layer, x).sum().backward()
    assert len(calls) == (1 if has_product else 2)
    assert product.asked == (["checkpoint", "product"] if has_product else [])
    again, x.grad = x.grad, None
    layer(x).sum().backward()
    assert torch.equal(again, x.grad)
