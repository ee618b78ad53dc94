"""`patch` against the model as it was: losses, gradients, generation; on a CPU and by interpreted kernels."""

from __future__ import annotations

import copy
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel, Qwen2ForCausalLM

from eagle_kernels.checks import as_rows
from eagle_kernels.integrations import attention as eagle_attention
from eagle_kernels.integrations import transformers as integration
from eagle_kernels.integrations.transformers import GeluMLP, LayerNorm, RMSNorm, SwiGLU, patch, unpatch
from tests.integrations.models import (
    assert_close,
    assert_same_gradients,
    causal_lm,
    gradients,
    siglip_text,
    siglip_vision,
    token_ids,
)

LANGUAGE = ("qwen2", "qwen3", "llama")


def labels_of(ids_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
    """The ids, but a question's and padding, which nothing supervises."""
    labels_BT = ids_BT.masked_fill(torch.arange(ids_BT.shape[1]) < 3, -100)
    return labels_BT if mask_BT is None else labels_BT.masked_fill(mask_BT == 0, -100)


@pytest.fixture
def kernels(monkeypatch) -> None:
    """The ops of the integration launch their kernels, which Triton interprets on CPU tensors."""

    def op(name: str) -> Any:
        return import_module(f"eagle_kernels.{name}")

    def varlen(q, k, v, plan, *, causal, softmax_scale):  # type: ignore[no-untyped-def]
        return op("attention")._varlen_attention(q, k, v, plan, causal, softmax_scale)[0]

    def loss(hidden, weight, labels, weights, *, ignore_index):  # type: ignore[no-untyped-def]
        return op("linear_cross_entropy")._fwd(hidden, weight, labels, weights, ignore_index, True, True, True)[0]

    def turned(q, k, positions, theta=None, *, frequencies=None, scale=1.0):  # type: ignore[no-untyped-def]
        return op("rope")._rope(q, k, positions, theta or 0.0, False, frequencies, scale)

    ops = {
        "rope": turned,
        "rms_norm": lambda x, w, eps: op("rms_norm")._fwd(as_rows(x), w, eps)[0].view(x.shape),
        "layer_norm": lambda x, w, b, eps: op("layer_norm")._fwd(as_rows(x), w, b, eps)[0].view(x.shape),
        "swiglu": lambda gate, up: op("swiglu")._fwd(as_rows(gate), as_rows(up)).view(gate.shape),
        "gelu_bias": lambda x, b: op("gelu_bias")._fwd(as_rows(x), b).view(x.shape),
        "linear_cross_entropy": loss,
    }
    for name, function in ops.items():
        monkeypatch.setattr(integration, name, function)
    monkeypatch.setattr(eagle_attention, "varlen_attention", varlen)


def assert_trains_alike(patched: Any, plain: Any, ids_BT: Tensor, **inputs: Any) -> None:
    inputs |= {"input_ids": ids_BT, "labels": labels_of(ids_BT, inputs.get("attention_mask"))}
    results = [model.train()(**inputs) for model in (patched, plain)]
    assert results[0].logits is None
    assert_close(results[0].loss, results[1].loss)
    assert_same_gradients(gradients(patched, results[0].loss), gradients(plain, results[1].loss))


@pytest.mark.parametrize("family", LANGUAGE)
def test_language_models_train_as_before(family: str) -> None:
    plain = causal_lm(family)
    patched = copy.deepcopy(plain)
    swapped = [swap.op for swap in patch(patched)]
    num_norms = 9 if family == "qwen3" else 5  # with those of q and k
    want = {"rms_norm": num_norms, "swiglu": 2, "rope": 2, "linear_cross_entropy": 1, "varlen_attention": 1}
    assert {op: swapped.count(op) for op in swapped} == want
    assert_trains_alike(patched, plain, token_ids(2, 9))
    assert_trains_alike(patched, plain, token_ids(2, 9), num_items_in_batch=torch.tensor(40))
    assert_trains_alike(patched, plain, token_ids(2, 9), attention_mask=torch.tensor([[1] * 9, [1] * 5 + [0] * 4]))


@pytest.mark.parametrize("make", [siglip_vision, siglip_text], ids=["vision", "text"])
def test_siglip_trains_as_before(make) -> None:
    plain = make()
    patched = copy.deepcopy(plain)
    swapped = [swap.op for swap in patch(patched)]
    num_mlps = 3 if make is siglip_vision else 2  # with the pooling head's
    want = {"layer_norm": 4 + num_mlps - 1, "gelu_bias": num_mlps, "varlen_attention": 1}
    assert {op: swapped.count(op) for op in swapped} == want
    inputs = torch.randn(2, 3, 32, 32) if make is siglip_vision else token_ids(2, 9)
    outputs = [model(inputs).pooler_output for model in (patched, plain)]
    assert_close(*outputs)
    losses = [out.square().mean() for out in outputs]
    assert_same_gradients(gradients(patched, losses[0]), gradients(plain, losses[1]))


@pytest.mark.parametrize("how", ["bf16", "autocast"])
def test_sixteen_bits(how: str) -> None:
    """As far from fp32 as transformers' own numbers are, and no dtype that an op would refuse."""
    exact = causal_lm("qwen3").train()
    ids_BT = token_ids(2, 9)
    want = exact(input_ids=ids_BT, labels=ids_BT).loss
    losses = []
    for is_patched in (True, False):
        model = copy.deepcopy(exact)
        if is_patched:
            patch(model)
        if how == "bf16":
            model.to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            losses.append(model(input_ids=ids_BT, labels=ids_BT).loss)
        assert all(gradient.isfinite().all() for gradient in gradients(model, losses[-1]).values())
    ours, theirs = (float((loss - want).detach().abs()) for loss in losses)
    assert ours <= 2 * theirs + 0.01


@pytest.mark.usefixtures("kernels")
def test_kernels_train_language_models_as_before() -> None:
    """Qwen3, whose norms of q and k are one more way to call an op; the three differ in nothing else here."""
    plain = causal_lm("qwen3", num_hidden_layers=1)
    patched = copy.deepcopy(plain)
    patch(patched)
    packed = {"position_ids": torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])}
    assert_trains_alike(patched, plain, token_ids(1, 8), **packed)


@pytest.mark.usefixtures("kernels")
def test_kernels_train_siglip_as_before() -> None:
    plain = siglip_vision(vision_use_head=False)
    patched = copy.deepcopy(plain)
    patch(patched)
    losses = [model(torch.ones(1, 3, 32, 32)).last_hidden_state.square().mean() for model in (patched, plain)]
    assert_close(*losses)
    assert_same_gradients(gradients(patched, losses[0]), gradients(plain, losses[1]))


def test_unpatch_restores_bit_for_bit_and_patching_twice_is_harmless() -> None:
    model, ids_BT = causal_lm("qwen3", attention="sdpa").train(), token_ids(2, 9)

    def state() -> tuple:
        loss = model(input_ids=ids_BT, labels=ids_BT).loss
        classes = {name: type(module) for name, module in model.named_modules()}
        return classes, list(model.state_dict()), model.config._attn_implementation, loss, gradients(model, loss)

    def same(a: tuple, b: tuple) -> bool:
        return a[:3] == b[:3] and torch.equal(a[3], b[3]) and all(torch.equal(a[4][k], b[4][k]) for k in b[4])

    before, parameters = state(), [id(p) for p in model.parameters()]
    unpatch(model)  # nothing to do
    assert same(state(), before)
    assert patch(model)
    patched = state()
    assert patched[1] == before[1]
    assert [id(p) for p in model.parameters()] == parameters
    assert patched[0] != before[0]
    assert patch(model) == []
    assert same(state(), patched)
    unpatch(model)
    assert same(state(), before)


def test_a_copy_of_a_patched_model_is_one_of_its_own() -> None:
    model = causal_lm("llama")
    patch(model)
    other = copy.deepcopy(model)
    unpatch(other)
    assert other.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "eagle"
    assert_trains_alike(model, other, token_ids(1, 5))


@pytest.mark.parametrize(
    ("family", "cache"), [("qwen2", "dynamic"), ("qwen2", "static"), ("llama", "static"), ("qwen3", None)]
)
def test_generation_is_as_before(family: str, cache: str | None) -> None:
    plain = causal_lm(family).eval()
    patched = copy.deepcopy(plain)
    patch(patched)
    ids_BT = token_ids(2, 7)
    mask_BT = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    given = {"attention_mask": mask_BT, "max_new_tokens": 5, "do_sample": False}
    want = plain.generate(ids_BT, **given)
    how = {"use_cache": False} if cache is None else {"cache_implementation": cache}
    assert torch.equal(patched.generate(ids_BT, **given, **how), want)
    beams = {**given, "num_beams": 3, "max_new_tokens": 3}
    if cache == "dynamic":
        assert torch.equal(patched.generate(ids_BT, **beams), plain.generate(ids_BT, **beams))


def test_in_eval_mode_the_logits_are_there() -> None:
    plain, ids_BT = causal_lm("qwen2").eval(), token_ids(2, 9)
    patched = copy.deepcopy(plain)
    patch(patched)
    ours, theirs = (model(input_ids=ids_BT, labels=ids_BT) for model in (patched, plain))
    assert_close(ours.logits, theirs.logits)
    assert_close(ours.loss, theirs.loss)


def test_the_loss_takes_transformers_arguments() -> None:
    plain, ids_BT = causal_lm("qwen2").train(), token_ids(2, 9)
    patched = copy.deepcopy(plain)
    patch(patched)
    shifted = F.pad(ids_BT, (0, 1), value=7)[:, 1:].masked_fill(ids_BT < 9, 5)
    given = {"input_ids": ids_BT, "labels": ids_BT, "shift_labels": shifted, "ignore_index": 5}
    assert_close(patched(**given, num_items_in_batch=13).loss, plain(**given, num_items_in_batch=13).loss)
    (loss,) = patched(input_ids=ids_BT, labels=ids_BT, return_dict=False, use_cache=False)
    assert_close(loss, plain(input_ids=ids_BT, labels=ids_BT).loss)
    nothing = patched(input_ids=ids_BT, labels=torch.full_like(ids_BT, -100)).loss
    assert nothing == 0


def test_the_loss_of_the_tokens_that_are_kept() -> None:
    """As transformers: logits of the last tokens, or of chosen ones, and labels of as many."""
    plain, ids_BT = causal_lm("llama").train(), token_ids(2, 9)
    patched = copy.deepcopy(plain)
    patch(patched)
    for kept, labels in ((4, ids_BT[:, -4:]), (torch.tensor([1, 5, 7]), ids_BT[:, [1, 5, 7]])):
        losses = [model(input_ids=ids_BT, labels=labels, logits_to_keep=kept).loss for model in (patched, plain)]
        assert_close(*losses)
        assert_same_gradients(gradients(patched, losses[0]), gradients(plain, losses[1]))
    with pytest.raises(ValueError, match=r"labels is \(2, 9\); needs \(2, 4\), the tokens that logits_to_keep leaves"):
        patched(input_ids=ids_BT, labels=ids_BT, logits_to_keep=4)


def test_another_model_with_the_same_config_stays_as_it_is() -> None:
    config = causal_lm("qwen2").config
    first, second = Qwen2ForCausalLM(config), Qwen2ForCausalLM(config)
    patch(first)
    assert {module.config._attn_implementation for module in first.modules() if hasattr(module, "config")} == {"eagle"}
    assert len({id(module.config) for module in first.modules() if hasattr(module, "config")}) == 1
    assert second.config._attn_implementation == config._attn_implementation == "eager"
    first.load_state_dict(second.state_dict())
    assert_trains_alike(first, second, token_ids(1, 5))
    unpatch(first)
    assert first.config._attn_implementation == "eager"


def test_a_loss_of_ones_own_stays() -> None:
    model, ids_BT = causal_lm("qwen2").train(), token_ids(1, 5)
    patch(model)
    model.loss_function = lambda logits, **_: logits.sum()
    result = model(input_ids=ids_BT, labels=ids_BT)
    assert torch.equal(result.loss, result.logits.sum())


def test_a_hook_on_fc1_sees_a_call() -> None:
    model, seen = siglip_text().eval(), []
    want = model(token_ids(1, 5)).last_hidden_state
    patch(model)
    model.encoder.layers[0].mlp.fc1.register_forward_hook(lambda *_: seen.append(1))
    assert_close(model(token_ids(1, 5)).last_hidden_state, want)
    assert seen == [1]


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"hidden_act": "gelu"}, {"swiglu"}),
        ({"num_attention_heads": 16, "num_key_value_heads": 16}, {"varlen_attention"}),  # heads 4 wide
        ({"attention_dropout": 0.1}, {"varlen_attention"}),
        ({"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}, {"varlen_attention"}),
    ],
    ids=["activation", "head width", "dropout", "window"],
)
def test_what_computes_something_else_stays(changes: dict, missing: set[str]) -> None:
    plain = causal_lm("qwen2", **changes).eval()
    patched = copy.deepcopy(plain)
    done = {swap.op for swap in patch(patched)}
    assert {"rms_norm", "swiglu", "rope", "linear_cross_entropy", "varlen_attention"} - done == missing
    ids_BT = token_ids(2, 9)
    assert_close(patched(input_ids=ids_BT).logits, plain(input_ids=ids_BT).logits)


ROPE_SCALING = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 4},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", ROPE_SCALING)
def test_scaled_positions(kind: str) -> None:
    scaling = {"rope_type": kind, "rope_theta": 1e4, **ROPE_SCALING[kind]}
    # Beyond what the model was trained on, where "dynamic" begins to scale.
    plain = causal_lm("llama", rope_parameters=scaling, max_position_embeddings=4 if kind == "dynamic" else 64)
    patched = copy.deepcopy(plain)
    assert "rope" in {swap.op for swap in patch(patched)}
    assert_trains_alike(patched, plain, token_ids(2, 9))
    unscaled = causal_lm("llama")
    ids_BT = token_ids(1, 9)
    assert (patched.eval()(input_ids=ids_BT).logits - unscaled(input_ids=ids_BT).logits).abs().max() > 1e-3
    unpatch(patched)
    assert "rotary" not in vars(patched.model.layers[0].self_attn)


def test_other_models_are_refused_with_a_list_of_those_known() -> None:
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    with pytest.raises(ValueError, match="BertModel; knows models of Qwen2, Qwen3, Llama, Siglip"):
        patch(bert)


def test_names_on_disk_stay(tmp_path: Path) -> None:
    model = causal_lm("qwen2")
    patch(model)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]
    again = type(causal_lm("qwen2")).from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_bf16_and_norms_kept_in_fp32() -> None:
    """As for quantised training with adapters: the norm's result is wide, and what follows is cast by its owner."""
    x = torch.randn(5, 16, dtype=torch.bfloat16)
    ours, weight = RMSNorm(16), torch.randn(16)
    ours.weight.data.copy_(weight)
    wide = x.float()
    want = weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
    assert ours(x).dtype == torch.float32
    assert_close(ours(x), want)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (RMSNorm(8), ["weight"]),
        (LayerNorm(8), ["weight", "bias"]),
        (SwiGLU(8, 16), ["gate_proj.weight", "up_proj.weight", "down_proj.weight"]),
        (GeluMLP(8, 16), ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]),
    ],
    ids=["RMSNorm", "LayerNorm", "SwiGLU", "GeluMLP"],
)
def test_modules_for_a_model_of_ones_own(module: nn.Module, names: list[str]) -> None:
    assert list(module.state_dict()) == names
    assert module(torch.randn(3, 8)).shape == (3, 8)


def test_the_example_trains_alike(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    example = import_module("patch_qwen2")
    monkeypatch.setattr(example, "LENGTHS", (3, 5, 4))
    monkeypatch.setattr(example, "STEPS", 2)
    monkeypatch.setattr(example, "load", lambda name, device: causal_lm("qwen2"))
    results = example.main([])
    assert results["patched"] == pytest.approx(results["as it is"], rel=1e-5)
    assert results["patched"][1] < results["patched"][0]


@pytest.mark.parametrize("first", ["patch", "adapters"])
def test_adapters_before_and_after(first: str) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "gate_proj", "down_proj"], init_lora_weights=False)
    plain = causal_lm("qwen2")
    patched = copy.deepcopy(plain)
    if first == "patch":
        patch(patched)
    models = []
    for model in (patched, plain):
        torch.manual_seed(0)
        models.append(get_peft_model(model, config))
    if first == "adapters":
        with pytest.raises(ValueError, match=r"PeftModel; knows .* patch\(model.get_base_model\(\)\)"):
            patch(models[0])
        assert patch(models[0].get_base_model())
    assert_trains_alike(*models, token_ids(2, 9))
