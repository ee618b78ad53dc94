import pytest
import torch
from torch import nn

from eagle_model.model import lora
from eagle_model.model.config import tiny
from eagle_model.model.eagle import Eagle
from eagle_model.model.lora_config import LoraConfig
from eagle_model.model.loss import token_weights
from eagle_model.model.recompute import attention_kept, in_chunks, recomputed
from tests.model.samples import mixed_documents, pack, small_model, with_text

CFG = tiny()


def step(model, row, run_layer=None):
    """The loss and all gradients of a step."""
    model.zero_grad()
    torch.manual_seed(1)
    weights_T = token_weights(row.labels_T, row.cu_seqlens).to(row.patches_IPK.dtype)
    loss = model.lm_head(model.hidden(row, run_layer=run_layer), row.labels_T, weights_T)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def chunked(model, tokens=7, tiles=1):
    for layer in model.llm.layers:
        layer.mlp.chunk_tokens = tokens
    model.vision_chunk_tiles = tiles
    return model


def assert_same(got, want, **tolerance):
    torch.testing.assert_close(got[0], want[0], **tolerance)
    assert got[1].keys() == want[1].keys()
    for name, grad in want[1].items():
        torch.testing.assert_close(got[1][name], grad, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.parametrize("run_layer", [recomputed, attention_kept])
def test_every_bit_is_kept(run_layer):
    model, row = small_model(CFG), pack(mixed_documents(CFG))
    assert_same(step(model, row, run_layer), step(model, row), rtol=0, atol=0)


def attention_calls(monkeypatch, model, row, run_layer):
    """Whether each call of a layer's attention was one of forward or of backward, and was computed."""
    calls = []
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is attend:
                calls.append(func)
            return func(*args, **(kwargs or {}))

    with Count():
        step(model, row, run_layer)
    return len(calls)


def test_attention_is_computed_once_where_it_is_kept(monkeypatch):
    model, row = small_model(CFG), pack(mixed_documents(CFG))
    once = attention_calls(monkeypatch, model, row, None)
    assert once > 0
    assert attention_calls(monkeypatch, model, row, attention_kept) == once
    assert attention_calls(monkeypatch, model, row, recomputed) == 2 * once


@pytest.mark.parametrize("run_layer", [None, recomputed, attention_kept])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 3e-6)])
def test_chunks_give_the_whole_step_up_to_rounding(run_layer, tied, dtype, tolerance):
    model = small_model(with_text(CFG, tie_word_embeddings=tied)).to(dtype)
    row = pack(mixed_documents(CFG))
    row = row.to("cpu", dtype=dtype)
    want = step(model, row)
    got = step(chunked(model), row, run_layer)
    assert row.patches_IPK.shape[0] > 1
    assert row.num_tokens > 14
    scale = max(grad.abs().max().item() for grad in want[1].values())
    assert_same(got, want, rtol=0, atol=tolerance * scale)


def test_chunks_repeat_a_frozen_tower_and_adapters_with_dropout():
    for training in ("vision", "llm", "lora"):
        model, row = small_model(CFG), pack(mixed_documents(CFG))
        if training == "lora":
            lora.add_lora(model, LoraConfig(rank=4, dropout=0.5, targets=("gate_proj", "up_proj", "fc1")), base="base")
            for name, parameter in model.named_parameters():
                if ".B." in name:
                    nn.init.normal_(parameter)
        else:
            getattr(model, "llm" if training == "vision" else "vision").requires_grad_(False)
        chunked(model.train())
        want = step(model, row)  # the same chunks draw the same dropout, whether a layer is run again or not
        assert_same(step(model, row, recomputed), want, rtol=0, atol=0)
        assert {name for name, p in model.named_parameters() if p.requires_grad} == want[1].keys()


def test_dropout_is_the_same_when_a_chunk_is_computed_again():
    dropout, x = nn.Dropout(0.5), torch.ones(64, 3, requires_grad=True)
    out = in_chunks([dropout], dropout, x, 10)
    torch.rand(5)  # what is drawn in between
    state = torch.get_rng_state()
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())
    assert set(out.unique().tolist()) == {0, 2}
    assert torch.equal(torch.get_rng_state(), state)  # and what is drawn after it


def test_an_mlp_in_chunks_inside_a_layer_that_is_run_again_is_computed_twice():
    """And not a third time, when the layer is run again to give the MLP's input back."""
    model, row = small_model(CFG), pack(mixed_documents(CFG))
    chunked(model, tokens=row.num_tokens // 2 + 1)
    rows = []
    model.llm.layers[1].mlp.down_proj.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    step(model, row, recomputed)
    assert sum(rows) == 2 * row.num_tokens
    assert len(rows) == 4


def test_chunks_keep_their_input_alone():
    mlp = nn.Sequential(nn.Linear(8, 800), nn.GELU(), nn.Linear(800, 8))
    x = torch.randn(100, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        in_chunks([mlp], mlp, x, 10)
    assert [t.shape for t in kept] == [x.shape]


def test_sums_of_bf16_weights_are_rounded_once():
    """A thousand chunks whose gradients are 1 each: in bf16 the sum would stop at 256."""
    linear = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    in_chunks([linear], linear, torch.ones(1000, 1, dtype=torch.bfloat16), 1).float().sum().backward()
    assert linear.weight.grad.item() == 1000


def test_few_rows_and_no_gradients_take_the_plain_way():
    linear = nn.Linear(3, 4)
    x = torch.randn(10, 3)
    want = linear(x)
    assert in_chunks([linear], linear, x, 10).grad_fn.name() == want.grad_fn.name()
    with torch.no_grad():
        got = in_chunks([linear], linear, x, 3)
    assert not got.requires_grad
    torch.testing.assert_close(got, want)
    assert in_chunks([], lambda part: part * 2, x, 4).requires_grad is False


def test_autocast_is_the_same_when_a_chunk_is_computed_again():
    linear = nn.Linear(8, 8)
    dtypes = []
    linear.register_forward_hook(lambda module, args, out: dtypes.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        out = in_chunks([linear], linear, torch.randn(4, 8), 2)
    out.float().sum().backward()
    assert dtypes == [torch.bfloat16] * 4


def test_the_model_of_a_config_has_no_chunks():
    model = Eagle(CFG)
    assert model.vision_chunk_tiles is None
    assert model.lm_head.chunk_bytes is None
    assert all(layer.mlp.chunk_tokens is None for layer in model.llm.layers)
