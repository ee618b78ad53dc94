"""Weights of 4 bits: their size, their error, gradients through them, and a model over them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eagle_model.model.linear import Linear
from eagle_model.model.lora import LoraConfig, add_lora, merge
from eagle_model.model.nf4 import is_nf4, projections, to_nf4
from tests.model.samples import small_model
from tests.model.test_lora import logits_of

pytest.importorskip("torchao", reason="needs torchao (the extra `qlora`)")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(512, 1024), (128, 320), (3, 64)])
def test_the_error_is_what_it_is_said_to_be(shape, dtype):
    weight_FC = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02
    packed = to_nf4(weight_FC.to(dtype))
    assert is_nf4(packed)
    assert packed.dtype == dtype
    assert not packed.requires_grad
    error = (packed.to(torch.float32) - weight_FC).norm() / weight_FC.norm()
    assert 0.089 < error < 0.095
    parts = (getattr(packed, name) for name in packed.__tensor_flatten__()[0])
    bits = 8 * sum(part.numel() * part.element_size() for part in parts)
    assert weight_FC.numel() < 1000 or bits < 4.3 * weight_FC.numel()


def test_a_layer_over_it_computes_with_what_it_stands_for_and_passes_gradients():
    torch.manual_seed(0)
    layer = Linear(64, 6)
    layer.weight = nn.Parameter(to_nf4(layer.weight), requires_grad=False)
    dense, x = layer.weight.to(torch.float32), torch.randn(5, 64, requires_grad=True)
    out = layer(x)
    torch.testing.assert_close(out, F.linear(x, dense, layer.bias))
    out.square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * out.detach() @ dense)
    assert layer.weight.grad is None


def test_a_size_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"to_nf4: the weight is \(3, 20\), 60 numbers; needs a multiple of 64"):
        to_nf4(torch.ones(3, 20))
    assert not is_nf4(torch.ones(3, 64))


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_over_it_and_merged(dora):
    model = small_model()
    names = [f"llm.{name}" for name in projections(model.llm)]
    for name in names:
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, nn.Parameter(to_nf4(model.get_parameter(name)), requires_grad=False))
    before = logits_of(model)
    add_lora(model, LoraConfig(rank=2, targets=("q_proj", "down_proj"), dora=dora))
    model.eval()
    assert (logits_of(model) - before).abs().max() < 1e-5  # |W| / |W| of DoRA is 1 but for rounding
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    logits = logits_of(model)
    logits.sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        name for name, p in model.named_parameters() if p.requires_grad and not name.startswith("vision")
    } | {name for name, p in model.named_parameters() if p.requires_grad}
    merge(model)
    assert (logits_of(model) - logits).abs().max() < 1e-5 * logits.abs().max()
    assert not any(is_nf4(parameter) for parameter in model.parameters())
