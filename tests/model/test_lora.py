"""Adapters without PEFT: blocks of a projection, what is trained, merging, files, and what is refused."""

import json
import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from eagle_model.fields import ConfigError
from eagle_model.model.config import tiny
from eagle_model.model.eagle import Eagle, build
from eagle_model.model.linear import FusedLinear, Linear
from eagle_model.model.lora import (
    Block,
    LoraConfig,
    LoraLinear,
    add_lora,
    load_adapter,
    merge,
    save_adapter,
    trained_whole,
)
from eagle_model.model.loss import sqrt_mass
from eagle_model.model.recompute import recomputed
from eagle_model.model.weights import LAYOUTS
from tests.model.samples import IMAGE_TOKEN_ID, VOCAB_SIZE, mixed_documents, pack, small_model, with_text
from tests.model.test_eagle import called, owners

CFG = tiny(vocab_size=VOCAB_SIZE, image_token_id=IMAGE_TOKEN_ID)
EVERYWHERE = LoraConfig(rank=4, alpha=6, targets=("all-linear",))
DORA = LoraConfig(rank=2, alpha=3, targets=("all-linear",), dora=True)
Q = "language_model.model.layers.1.self_attn.q_proj"
VISION_Q = "vision_model.vision_model.encoder.layers.0.self_attn.q_proj"


def logits_of(model: Eagle) -> torch.Tensor:
    row = pack(mixed_documents(CFG)).to("cpu", dtype=model.lm_head.weight.dtype)
    return model.lm_head(model.hidden(row))


def with_adapters(config: LoraConfig, model: Eagle | None = None) -> Eagle:
    """A model whose adapters all show in what it says."""
    model = small_model(CFG) if model is None else model
    add_lora(model, config, base="a/model")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


# ---- a projection


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_projection_of_several_blocks_is_those_blocks_one_by_one(dora, bias):
    """Rows of three modules, the middle one without an adapter, each of its own rank and scale."""
    torch.manual_seed(0)
    plain = FusedLinear(12, 5 + 2 + 3, bias=bias)
    plain.sizes = (5, 2, 3)
    blocks = (Block("a.q", 5, 2, 0.5), Block("a.k", 2, 0, 0.0), Block("a.v", 3, 4, 2.0))
    layer = LoraLinear(plain, blocks, LoraConfig(dora=dora, dropout=0.0))
    layer.draw("gaussian")
    x = torch.randn(7, 12)
    assert torch.equal(layer(x), plain(x))  # new ones change nothing
    for parameter in layer.lora.parameters():
        nn.init.normal_(parameter)
    parts = zip(plain.weight.split([5, 2, 3]), plain.bias.split([5, 2, 3]) if bias else [0.0] * 3, blocks, strict=True)
    want = []
    for weight, b, block in parts:
        if block.rank:
            adapter = layer.adapter(block)
            weight = weight + block.scale * adapter.B.weight @ adapter.A.weight
            if dora:
                weight = adapter.magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True)
        want.append(x @ weight.T + b)
    torch.testing.assert_close(layer(x), torch.cat(want, dim=1), atol=1e-5, rtol=1e-5)
    merged = layer.merged()
    assert (type(merged), merged.sizes) == (FusedLinear, (5, 2, 3))
    assert (merged(x) - layer(x)).abs().max() <= 1e-6 * layer(x).abs().max()
    assert {name for name, _ in layer.named_parameters()} >= {name for name, _ in plain.named_parameters()}


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_leaves_out_inputs_of_adapters_alone_and_in_training_alone(dora):
    torch.manual_seed(0)
    layer = LoraLinear(Linear(64, 8), [Block("a.q", 8, 4, 1.0)], LoraConfig(dora=dora, dropout=0.5))
    layer.draw("kaiming")
    adapter = layer.adapter(layer.blocks[0])
    nn.init.normal_(adapter.B.weight)
    x = torch.randn(3, 64)
    kept = {}
    adapter.A.register_forward_hook(lambda module, inputs, out: kept.update(x=inputs[0]))
    layer(x)
    share = (kept["x"] == 0).float().mean()
    assert 0.35 < share < 0.65
    assert torch.equal(kept["x"][kept["x"] != 0], 2 * x[kept["x"] != 0])
    first = layer.eval()(x)
    assert torch.equal(kept["x"], x)
    assert torch.equal(layer(x), first)


def test_adapters_in_fp32_over_a_bf16_weight():
    model = with_adapters(EVERYWHERE)
    want = logits_of(model)
    adapters = {name: p.detach().clone() for name, p in model.named_parameters() if ".lora." in name}
    model.to(torch.bfloat16)
    for name, value in adapters.items():
        model.get_parameter(name).data = value
    logits = logits_of(model)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - want).norm() < 0.05 * want.norm()


# ---- a model


@pytest.mark.parametrize("config", [EVERYWHERE, DORA], ids=["LoRA", "DoRA"])
def test_new_adapters_change_nothing_and_a_seed_gives_the_same_ones(config):
    model, again = small_model(CFG), small_model(CFG)
    before = logits_of(model)
    for each in (model, again):
        torch.manual_seed(7)
        add_lora(each, config)
    assert torch.equal(logits_of(model.eval()), before)
    ours, same = ({n: p for n, p in each.named_parameters() if ".lora." in n} for each in (model, again))
    assert ours.keys() == same.keys()
    assert all(torch.equal(ours[name], same[name]) for name in ours)
    widths = {p.shape[1]: p for name, p in ours.items() if name.endswith(".A.weight")}
    assert all(p.abs().max() <= math.sqrt(1 / width) for width, p in widths.items())  # as nn.Linear draws


def test_adapters_alone_are_trained_and_what_is_to_be_saved_whole():
    model = small_model(CFG)
    before = {name for name, _ in model.named_parameters()}
    config = LoraConfig(targets=(r"language_model\..*\.[qv]_proj", "fc1", "mlp1.1"), modules_to_save=("mlp1", "norm"))
    add_lora(model, config)
    after = {name: p.requires_grad for name, p in model.named_parameters()}
    whole = {name for name in before if name.startswith(("connector.", "llm.norm."))}  # its projections stay plain
    assert set(trained_whole(model, config)) == whole
    assert {name for name, trained in after.items() if trained} == whole | (after.keys() - before)
    leaves = {tuple(name.split(".lora.")[1].split(".")) for name in after.keys() - before}
    assert leaves == {(block, part, "weight") for block in ("q_proj", "v_proj", "fc1") for part in "AB"}
    assert {type(m.weight) for m in model.modules() if isinstance(m, LoraLinear)} == {nn.Parameter}


def test_every_module_with_parameters_is_called_in_training_and_recomputed_with_the_same_dropout():
    model = with_adapters(replace(DORA, dropout=0.5)).train()
    row = pack(mixed_documents(CFG))
    mass = sqrt_mass(row.labels_T, row.cu_seqlens)
    grads = []
    for run_layer in (None, recomputed):
        torch.manual_seed(0)
        model.zero_grad()
        step = partial(model, row, mass, run_layer=run_layer)
        names = called(model, lambda step=step: step().backward())
        assert len(owners(model)) > 100
        assert owners(model).keys() - names == set()
        assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
        grads.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert [name for name, grad in grads[0].items() if not torch.equal(grad, grads[1][name])] == []


def test_every_module_with_parameters_is_called_in_generation():
    model = with_adapters(EVERYWHERE)
    row = pack(mixed_documents(CFG))
    assert owners(model).keys() - called(model, lambda: model.generate(row, max_new_tokens=1)) == set()


@pytest.mark.parametrize("config", [EVERYWHERE, DORA], ids=["LoRA", "DoRA"])
def test_merged_is_the_same_model(config):
    kinds, shapes = [], []
    model, exact = with_adapters(config), with_adapters(config, small_model(CFG).double())
    for name, parameter in model.named_parameters():
        exact.get_parameter(name).data = parameter.detach().double()
    with torch.no_grad():
        unmerged, true = logits_of(model), logits_of(exact)
        merge(model)
        merge(exact)
        assert (logits_of(exact) - true).abs().max() < 1e-12
        error_before, error_after = (
            (logits.double() - true).norm() / true.norm() for logits in (unmerged, logits_of(model))
        )
    assert error_after < 1.5 * error_before  # what fp32 loses on the way through the model, merged or not
    assert model.adapter is None
    for each in (model, small_model(CFG)):
        kinds.append({name: type(module) for name, module in each.named_modules()})
        shapes.append({name: p.shape for name, p in each.named_parameters()})
    assert kinds[0] == kinds[1]
    assert shapes[0] == shapes[1]
    assert all(p.requires_grad for p in model.parameters())
    add_lora(model, config)  # and from there on


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_other_families_and_a_connector_of_one_layer(family, tmp_path):
    cfg = replace(with_text(CFG, model_type=family, head_dim=16, num_hidden_layers=1), mlp_connector_layers=1)
    model, again = with_adapters(EVERYWHERE, small_model(cfg)), small_model(cfg)
    save_adapter(model, tmp_path / family)
    keys = load_file(tmp_path / family / "adapter_model.safetensors")
    assert {
        f"base_model.model.{name}.lora_B.weight" for name in ("mlp1.0", Q.replace("layers.1", "layers.0"))
    } < keys.keys()
    load_adapter(again, tmp_path / family)
    assert torch.equal(logits_of(again), logits_of(model))
    merge(model)
    torch.testing.assert_close(logits_of(model), logits_of(again), atol=1e-4, rtol=1e-4)


def test_on_meta_nothing_is_drawn():
    model = build(CFG)
    state = torch.get_rng_state()
    add_lora(model, EVERYWHERE)
    assert all(p.is_meta for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_be_added_is_refused():
    model = small_model(CFG)
    with pytest.raises(
        ConfigError, match=r"targets is c_attn; no projection has such a name\. The names end in, or are: .*q_"
    ):
        add_lora(model, LoraConfig(targets=("c_attn",)))
    with pytest.raises(ConfigError, match=r"targets is patch_embedding; no projection"):
        add_lora(model, LoraConfig(targets=("patch_embedding",)))
    with pytest.raises(ConfigError, match=r"modules_to_save is mlp2; the model has no parameter of such a name"):
        add_lora(model, LoraConfig(modules_to_save=("mlp1", "mlp2")))
    with pytest.raises(
        ConfigError, match=r"modules_to_save has a part of .*q_proj, .*k_proj, .*v_proj, which are one here"
    ):
        add_lora(model, LoraConfig(targets=("up_proj",), modules_to_save=("q_proj",)))
    for call in (merge, lambda m: save_adapter(m, "/nowhere")):
        with pytest.raises(ValueError, match="the model has no adapters; add_lora and load_adapter give it some"):
            call(model)
    assert all(p.requires_grad for p in model.parameters())
    add_lora(model, EVERYWHERE)
    with pytest.raises(ConfigError, match="the model has adapters; merge them first"):
        add_lora(model, EVERYWHERE)
    with pytest.raises(ValueError, match="save_pretrained: the model has adapters"):
        model.save_pretrained("/nowhere")


# ---- files


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(
        rank=4, targets=("q_proj", "up_proj"), rank_pattern=(("up_proj", 2),), modules_to_save=("mlp1",)
    )
    save_adapter(with_adapters(config), folder / "adapter")
    return folder / "adapter"


def changed(adapter: Path, folder: Path, tensors=lambda tensors: None, **fields: object) -> Path:
    """A copy of the adapter with other tensors or fields."""
    folder.mkdir()
    stored = load_file(adapter / "adapter_model.safetensors")
    tensors(stored)
    save_file({key: tensor.clone() for key, tensor in stored.items()}, folder / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text()) | fields
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_saved_and_loaded_it_is_the_same(adapter, tmp_path):
    model, again = small_model(CFG), small_model(CFG)
    load_adapter(model, adapter)
    assert not model.training
    assert model.adapter.config.rank_pattern == (("up_proj", 2),)
    save_adapter(model, tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (adapter / name).read_bytes()
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "a/model"
    with pytest.raises(FileExistsError, match=r"again already holds adapter_config\.json, adapter_model\.safetensors"):
        save_adapter(model, tmp_path / "again")
    load_adapter(again, tmp_path / "again", dtype=torch.bfloat16)
    assert {p.dtype for name, p in again.named_parameters() if ".lora." in name} == {torch.bfloat16}
    assert not torch.equal(logits_of(model), logits_of(small_model(CFG)))


@pytest.mark.parametrize("layout", ["transformers5", "groot", "lerobot"])
def test_an_adapter_under_another_layouts_names_is_the_same(layout, tmp_path):
    """As PEFT saves what it trained on LeRobot's class with transformers 5, or on a whole policy."""
    config = LoraConfig(rank=4, targets=("q_proj", "fc1"), rank_pattern=((VISION_Q, 2),), modules_to_save=("mlp1",))
    model = with_adapters(config)
    save_adapter(model, tmp_path / "plain")
    key, start = LAYOUTS[layout].key, "base_model.model."

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[start + key(name.removeprefix(start))] = tensors.pop(name)

    names = [key(VISION_Q.replace("layers.0", "layers.1")), key(VISION_Q), "fc1"]
    theirs = changed(
        tmp_path / "plain", tmp_path / "theirs", rename,
        target_modules=[*names, key(Q)], rank_pattern={f"^{key(VISION_Q)}": 2}, modules_to_save=["mlp1"],
    )  # fmt: skip
    again = small_model(CFG)
    load_adapter(again, theirs)
    assert torch.equal(logits_of(again), logits_of(model))
    save_adapter(again, tmp_path / "again")
    for name, tensor in load_file(tmp_path / "plain/adapter_model.safetensors").items():
        assert torch.equal(load_file(tmp_path / "again/adapter_model.safetensors")[name], tensor)


def test_the_order_of_patterns_outlives_a_file_that_sorts_them(tmp_path):
    patterns = {
        "rank_pattern": (("self_attn.q_proj", 2), ("q_proj", 6)),
        "alpha_pattern": (("self_attn.q_proj", 3.0), ("q_proj", 11.0)),
    }
    model = with_adapters(LoraConfig(rank=4, targets=("q_proj",), **patterns))
    save_adapter(model, tmp_path)
    again = small_model(CFG)
    load_adapter(again, tmp_path)
    assert torch.equal(logits_of(again), logits_of(model))


def test_embeddings_saved_whole_say_that_the_head_shares_them(tmp_path):
    tied = replace(CFG, text=replace(CFG.text, tie_word_embeddings=True))
    model = with_adapters(LoraConfig(rank=2, targets=("q_proj",), modules_to_save=("embed_tokens",)), small_model(tied))
    save_adapter(model, tmp_path)
    again = small_model(tied)
    load_adapter(again, tmp_path)
    assert torch.equal(logits_of(again), logits_of(model))
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**fields, "ensure_weight_tying": False}))
    apart = small_model(tied)  # then PEFT trained a copy for the embeddings alone
    load_adapter(apart, tmp_path)
    assert not apart.cfg.text.tie_word_embeddings
    assert torch.equal(apart.llm.embed_tokens.weight, again.llm.embed_tokens.weight)
    assert torch.equal(apart.lm_head.weight, small_model(tied).lm_head.weight)
    with pytest.raises(ValueError, match="modules_to_save has lm_head, whose weight the embeddings share"):
        add_lora(small_model(tied), LoraConfig(modules_to_save=("lm_head",)))


def test_a_name_that_means_more_to_peft_is_written_out(tmp_path):
    """`norm` is one module here, and to PEFT every module whose name ends so."""
    save_adapter(with_adapters(LoraConfig(rank=2, targets=("q_proj",), modules_to_save=("norm",))), tmp_path)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert fields["modules_to_save"] == ["language_model.model.norm"]
    load_adapter(small_model(CFG), tmp_path)


def test_a_model_with_adapters_takes_the_numbers_of_the_same_ones_alone(adapter):
    model, fresh = small_model(CFG), small_model(CFG)
    load_adapter(fresh, adapter)
    add_lora(
        model,
        LoraConfig(
            rank=4,
            targets=("q_proj", "up_proj"),
            rank_pattern=(("up_proj", 2),),
            dropout=0.3,
            modules_to_save=("mlp1",),
        ),
    )
    load_adapter(model, adapter)
    assert torch.equal(logits_of(model), logits_of(fresh))
    assert model.adapter.config.dropout == 0.3
    assert model.get_parameter("connector.up.weight").requires_grad
    for config, message in (
        (
            LoraConfig(rank=8, targets=("q_proj", "up_proj"), modules_to_save=("mlp1",)),
            "has rank 4 and scale 8; the model's has rank 8 and scale 4",
        ),
        (
            LoraConfig(rank=4, targets=("q_proj",), modules_to_save=("mlp1",)),
            "up_proj has rank 2 and scale 16; the model's has none",
        ),
        (
            LoraConfig(rank=4, targets=("q_proj", "up_proj"), rank_pattern=(("up_proj", 2),)),
            r"modules_to_save is \('mlp1',\); the model's adapters have \(\)",
        ),
    ):
        other = small_model(CFG)
        add_lora(other, config)
        with pytest.raises(ValueError, match=rf"adapter_config\.json: .*{message}"):
            load_adapter(other, adapter)


A = f"base_model.model.{Q}.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "fields", "message"),
    [
        (lambda t: t.pop(A), {}, rf"\(1 tensors, .*missing: {Q}\.lora_A\.weight"),
        (lambda t: t.update({A: t[A][:3]}), {}, rf"shape: {Q}\.lora_A\.weight is \(3, 128\), needs \(4, 128\)"),
        (lambda t: t.update({A: t[A].int()}), {}, r"dtype: .*lora_A\.weight is I32, needs one of F64, F32, F16, BF16"),
        (lambda t: t.update({A.replace("q_proj", "c_attn"): t[A]}), {}, r"unknown: '.*c_attn\.lora_A\.weight'"),
        (lambda t: t.update({A.replace("lora_A", "lora_B.bias"): t[A]}), {}, r"unknown: '.*lora_B\.bias\.weight'"),
        (lambda t: t.update({A[11:]: t[A]}), {}, r"holds 'model\..*'; names in an adapter's file begin with base"),
        (lambda t: t.pop("base_model.model.mlp1.0.bias"), {}, r"missing: mlp1\.0\.bias"),
        (lambda t: t.clear(), {}, r"\(2\d tensors.*missing: .*and \d more"),
        (lambda t: None, {"r": 8}, r"\(\d+ tensors, .*shape: .*q_proj\.lora_A\.weight is \(4, 128\), needs \(8, 128\)"),
        (lambda t: None, {"r": 2**40}, r"needs \(1099511627776, 128\)"),  # and no memory is taken for it
        (lambda t: None, {"use_dora": True}, r"missing: .*q_proj\.lora_magnitude_vector"),
        (lambda t: None, {"target_modules": ["q_proj", "c_attn"]}, r"unknown: '.*up_proj"),
        (lambda t: None, {"target_modules": ["c_attn"]}, r"adapter_config\.json: targets is c_attn; no projection has"),
        (lambda t: None, {"modules_to_save": None}, r"unknown: 'mlp1\.0\.bias'"),
        (lambda t: None, {"bias": "all"}, r"adapter_config\.json: bias is 'all'; needs 'none'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name_and_changes_nothing(adapter, tmp_path, change, fields, message):
    folder, model = changed(adapter, tmp_path / "changed", change, **fields), small_model(CFG)
    before = dict(model.named_parameters())
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        load_adapter(model, folder)
    assert model.adapter is None
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] and after[name].requires_grad for name in before)


def test_pickles_and_damaged_files_are_refused(adapter, tmp_path):
    model = small_model(CFG)
    with pytest.raises(FileNotFoundError, match=r"nowhere is no folder"):
        load_adapter(model, tmp_path / "nowhere")
    folder = changed(adapter, tmp_path / "changed")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is damaged or cut short"):
        load_adapter(model, folder)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"holds adapter_model\.bin, a pickle: reading it would run whatever code"):
        load_adapter(model, folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors is missing; an adapter's folder needs it"):
        load_adapter(model, folder)
    again = changed(adapter, tmp_path / "again")
    (again / "adapter_config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"adapter_config\.json: it holds \[1\]; needs a JSON object"):
        load_adapter(model, again)
    (again / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config\.json is not JSON"):
        load_adapter(model, again)
    (again / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json is missing; an adapter's folder needs it"):
        load_adapter(model, again)
