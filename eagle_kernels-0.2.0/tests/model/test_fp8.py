"""FP8 products of the language model: torchao as the oracle, padding that nothing sees, files that do not change."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eagle_model.batch import PackedBatch
from eagle_model.fields import ConfigError
from eagle_model.model import fp8, fp8_te
from eagle_model.model.config import eagle2_5_8b, tiny
from eagle_model.model.eagle import Eagle, build
from eagle_model.model.fp8 import TorchProduct, emulated, linear_flops, scaled_mm, use_fp8
from eagle_model.model.fp8_config import SCALINGS, Fp8Config
from eagle_model.model.linear import Linear
from eagle_model.model.lora import LoraConfig, add_lora, merge
from eagle_model.model.loss import sqrt_mass
from eagle_model.model.nf4 import to_nf4
from eagle_model.model.recompute import attention_kept, recomputed
from tests.model.samples import IMAGE_TOKEN_ID, VOCAB_SIZE, document, mixed_documents, pack, small_model, with_text

CFG = with_text(tiny(vocab_size=VOCAB_SIZE, image_token_id=IMAGE_TOKEN_ID), intermediate_size=384, num_hidden_layers=2)
RECIPES = list(SCALINGS)


def model_of(recipe: str | None = "current", cfg=CFG, **fields) -> Eagle:
    model = small_model(cfg).to(torch.bfloat16)
    if recipe is not None:
        use_fp8(model, Fp8Config(recipe=recipe, **fields))
    return model


def batch_of(*num_tokens: int) -> PackedBatch:
    return pack([document(CFG, count, 0, 0, seed=count) for count in num_tokens])


def results(model: Eagle, batch: PackedBatch, **options) -> dict[str, torch.Tensor]:
    """The loss, and the gradient of every parameter that gets one."""
    model.zero_grad()
    batch = batch.to(model.lm_head.weight.device, dtype=model.lm_head.weight.dtype)
    loss = model(batch, sqrt_mass(batch.labels_T, batch.cu_seqlens), **options)
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found}


def differing(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[str]:
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


# ---- the oracle


@pytest.mark.parametrize("batch", [batch_of(16), batch_of(9, 1), pack(mixed_documents(CFG))], ids=["16", "10", "mixed"])
def test_current_scaling_is_torchao_s_bit_for_bit(batch):
    """Loss and all gradients, though torchao's emulation gets the rows as they are and ours pads them."""
    training = pytest.importorskip("torchao.float8", reason="needs torchao (the extra `qlora`)")
    ours, theirs = model_of(), model_of(None)
    training.convert_to_float8_training(
        theirs.llm,
        config=training.Float8LinearConfig(emulate=True),
        module_filter_fn=lambda module, name: isinstance(module, Linear),
    )
    assert sum(type(module).__name__ == "Float8Linear" for module in theirs.modules()) == 2 * 4
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    assert not differing(results(ours, batch), results(theirs, batch))


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_is_near_bf16_and_not_bf16(recipe):
    ours, bf16 = results(model_of(recipe), batch_of(40, 23)), results(model_of(None), batch_of(40, 23))
    assert ours["loss"] != bf16["loss"]
    assert abs(ours["loss"] / bf16["loss"] - 1) < 0.03
    for name, gradient in bf16.items():
        away = (ours[name].float() - gradient.float()).norm() / gradient.float().norm()
        assert away < 0.35, (name, away)


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_product_by_hand(recipe):
    """y, dx and dW of one projection from expanded codes, each product with blocks along what it sums over."""
    torch.manual_seed(0)
    x, weight, dy = (torch.randn(shape, dtype=torch.bfloat16) for shape in ((128, 256), (384, 256), (128, 384)))
    x[3] *= 50
    scaling = SCALINGS[recipe]
    x.requires_grad_()
    weight.requires_grad_()
    TorchProduct(scaling, emulated)(x, weight, None).backward(dy)

    def rounded(tensor, summed, **kind):
        return fp8._codes(tensor.detach(), scaling, summed, **kind).expanded()

    y = TorchProduct(scaling, emulated)(x, weight, None)
    assert torch.equal(y, (rounded(x, 1) @ rounded(weight, 1, is_weight=True).t()).bfloat16())
    dx = rounded(dy, 1, is_gradient=True) @ rounded(weight, 0, is_weight=True)
    assert torch.equal(x.grad, dx.bfloat16())
    assert torch.equal(weight.grad, (rounded(dy, 0, is_gradient=True).t() @ rounded(x, 0)).bfloat16())


@pytest.mark.parametrize("num_rows", [1, 16, 37])
def test_torch_s_product_multiplies_the_same_numbers(num_rows):
    """_scaled_mm runs on a CPU too; it sums in another order."""
    torch.manual_seed(0)
    x = torch.randn(num_rows, 64, dtype=torch.bfloat16)
    weight = torch.randn(48, 64, dtype=torch.bfloat16, requires_grad=True)
    bias, dy = torch.randn(48, dtype=torch.bfloat16), torch.randn(num_rows, 48, dtype=torch.bfloat16)
    found = []
    for multiply in (emulated, scaled_mm):
        x_ = x.clone().requires_grad_()
        weight.grad = None
        y = TorchProduct(SCALINGS["current"], multiply)(x_, weight, bias)
        y.backward(dy)
        found.append((y, x_.grad, weight.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=2**-6)


# ---- padding


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_product_pads_rows_of_every_residue_and_nothing_shows(recipe):
    """Next in memory lies NaN; more zeros than needed change no bit of y, dx or dW."""
    torch.manual_seed(0)
    scaling, product = SCALINGS[recipe], TorchProduct(SCALINGS[recipe], emulated)
    multiple = scaling.multiple
    weight = torch.randn(128, 128, dtype=torch.bfloat16, requires_grad=True)
    numbers, gradients = torch.randn(2 * multiple, 128).bfloat16(), torch.randn(2 * multiple, 128).bfloat16()
    for num_rows in range(multiple + 2):
        found = []
        for num_given in (num_rows, num_rows + -num_rows % multiple, num_rows + -num_rows % multiple + multiple):
            buffers = torch.full((3 * multiple, 128), torch.nan), torch.full((3 * multiple, 128), torch.nan)
            x, dy = (buffer.bfloat16()[:num_given] for buffer in buffers)
            for rows, given in ((x, numbers), (dy, gradients)):
                rows.zero_()
                rows[:num_rows] = given[:num_rows]
            x.requires_grad_()
            weight.grad = None
            y = product(x, weight, None)
            y.backward(dy)
            assert not y[num_rows:].any()
            assert not x.grad[num_rows:].any()
            found.append((y[:num_rows], x.grad[:num_rows], weight.grad))
        for others in found[1:]:
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(found[0], others, strict=True)), num_rows


@pytest.mark.parametrize("recipe", RECIPES)
def test_padded_once_or_layer_by_layer_is_the_same(recipe):
    """Documents of 1 to 20 tokens in one row; where it is padded changes no bit, and no document sees the zeros."""
    once, each = model_of(recipe), model_of(recipe)
    assert once.row_multiple == SCALINGS[recipe].multiple
    each.row_multiple = 1
    batch = batch_of(*range(1, 21))
    assert batch.num_tokens % 16 == 2
    assert not differing(results(once, batch), results(each, batch))
    assert not results(once, batch)["loss"].isnan()


def test_the_row_that_enters_is_padded_with_zeros_that_stay_zeros():
    model, seen = model_of(), []
    for layer in model.llm.layers:
        layer.register_forward_hook(lambda layer, args, out: seen.append(out.detach()))
    hidden = model.hidden(batch_of(5, 13))
    assert hidden.shape == (18, 128)
    assert [len(out) for out in seen] == [32, 32]
    assert not any(out[18:].any() for out in seen)
    assert model.hidden(batch_of(0)).shape == (0, 128)


@pytest.mark.parametrize("name", ["attention_bias", "mlp_bias"])
def test_where_a_bias_fills_the_zeros_each_product_pads(name):
    cfg = replace(CFG, text=replace(CFG.text, model_type="llama", **{name: True}))
    model = model_of(cfg=cfg)
    assert model.row_multiple == 1
    longer = model_of(cfg=cfg)
    longer.row_multiple = 16
    batch = batch_of(5)
    assert torch.equal(model.hidden(batch), model_of(cfg=cfg).hidden(batch))
    assert not torch.equal(model.hidden(batch), longer.hidden(batch)), "the bias would count in a scale"


# ---- what stays as it is


def test_files_are_the_same_with_and_without(tmp_path):
    plain, ours = model_of(None), model_of()
    plain.save_pretrained(tmp_path / "bf16")
    ours.save_pretrained(tmp_path / "fp8")
    files = sorted(path.name for path in (tmp_path / "bf16").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "fp8").iterdir())
    for file in files:
        assert (tmp_path / "bf16" / file).read_bytes() == (tmp_path / "fp8" / file).read_bytes(), file
    assert list(plain.state_dict()) == list(ours.state_dict())
    batch = batch_of(7, 12)
    again = Eagle.from_pretrained(tmp_path / "fp8")
    assert not differing(results(again, batch), results(plain, batch))
    again = Eagle.from_pretrained(tmp_path / "bf16")
    use_fp8(again, Fp8Config())
    assert not differing(results(again, batch), results(ours, batch))


def test_only_the_language_model_s_projections_are_in_it():
    model = model_of()
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    in_fp8 = {name for name, module in linears.items() if getattr(module, "product", None) is not None}
    assert in_fp8 == {name for name in linears if name.startswith("llm.layers.")}
    assert len(in_fp8) == 2 * 4


def test_nine_tenths_of_the_8b_s_linear_flops():
    """lm_head counted among them, which stays in bf16."""
    model = build(eagle2_5_8b())
    assert linear_flops(model).share == 0
    for linear in (module for module in model.llm.modules() if isinstance(module, Linear)):
        for recipe in RECIPES:
            fp8._check_linear("a projection", linear, recipe)  # its widths fit all of them
    said = use_fp8(model, Fp8Config())
    flops = linear_flops(model)
    assert flops.share >= 0.9
    assert flops.all == 2 * (
        sum(p.numel() for n, p in model.llm.named_parameters() if "_proj.weight" in n) + 543_599_616
    )
    assert flops.in_fp8 == 28 * 2 * (3584 * (3584 + 2 * 512) + 3584 * 3584 + 3 * 3584 * 18944)
    assert "92.3 % of the language model's linear FLOPs" in said


def test_the_count_is_what_torch_counts():
    """Of matmuls in a forward of 16 tokens; attention's own and the rotation of positions are none of mm."""
    model = model_of(None)
    with FlopCounterMode(display=False) as counter:
        model.lm_head(model.hidden(batch_of(16).to("cpu", dtype=torch.bfloat16)))
    counted = sum(
        flops for op, flops in counter.get_flop_counts()["Global"].items() if str(op) in ("aten.mm", "aten.addmm")
    )
    assert counted == 16 * linear_flops(model).all


@pytest.mark.parametrize("recipe", RECIPES)
def test_activations_computed_again_give_the_same_gradients(recipe):
    batch = batch_of(9, 14)
    kept = results(model_of(recipe), batch)
    for run_layer in (recomputed, attention_kept):
        assert not differing(results(model_of(recipe), batch, run_layer=run_layer), kept)


def test_an_mlp_in_chunks_takes_scales_of_its_chunk():
    """Blocks of a row are the same in any chunk; a scale of all rows is another, and the loss is near."""
    batch = batch_of(*range(1, 21))
    for recipe, is_same in (("current", False), ("block", True)):
        model = model_of(recipe)
        whole = results(model, batch)["loss"]
        for layer in model.llm.layers:
            layer.mlp.chunk_tokens = 128
        chunked = results(model, batch)["loss"]
        assert torch.equal(chunked, whole) == is_same
        assert abs(chunked / whole - 1) < 0.01


def test_it_generates():
    """One token a document and step: rows are padded to 16 each time. The first token is that of a forward."""
    model = model_of()
    batch = batch_of(5, 11).to("cpu", dtype=torch.bfloat16)
    new_ids = model.generate(batch, max_new_tokens=3)
    assert [len(ids) for ids in new_ids] == [3, 3]
    with torch.no_grad():
        logits = model.lm_head(model.hidden(batch))
    assert [ids[0] for ids in new_ids] == [logits[4].argmax().item(), logits[15].argmax().item()]


def test_adapters_over_it():
    """The frozen weight is multiplied in FP8 and gets no gradient; merged, the projection is in FP8 as it was."""
    model = model_of(None)
    add_lora(model, LoraConfig(rank=2, dropout=0.0, targets=("q_proj", "down_proj")))
    model.to(torch.bfloat16)
    before = results(model, batch_of(8))
    use_fp8(model, Fp8Config())
    after = results(model, batch_of(8))
    assert after["loss"] != before["loss"]
    assert before.keys() == after.keys()
    assert all(".lora." in name for name in after if name != "loss")
    plain = model_of(None)
    add_lora(plain, LoraConfig(rank=2))
    with pytest.raises(ConfigError, match="fused is true and the model has adapters"):
        use_fp8(plain, Fp8Config(fused=True))
    merge(model)
    assert linear_flops(model).share == linear_flops(model_of()).share
    with pytest.raises(ConfigError, match="computes in FP8; it gets adapters first, and use_fp8 after them"):
        add_lora(model, LoraConfig(rank=2))


# ---- what is refused


def test_what_cannot_be_in_fp8_is_refused_in_words():
    model = model_of()
    with pytest.raises(ConfigError, match=r"in FP8 already \(layers.0.self_attn.qkv_proj has a product"):
        use_fp8(model, Fp8Config())
    odd = with_text(CFG, intermediate_size=320)
    with pytest.raises(
        ConfigError, match=r"gives 640 numbers a token|reads 320 .*needs multiples of 128. This width fits"
    ):
        use_fp8(small_model(odd), Fp8Config(recipe="block"))
    with pytest.raises(ConfigError, match=r"reads 72 numbers a token; recipe=current needs multiples of 16. No recipe"):
        use_fp8(small_model(with_text(CFG, intermediate_size=72, mlp_bias=False)), Fp8Config())
    with pytest.raises(ConfigError, match=r"Transformer Engine cannot be imported.*pip install --no-build-isolation"):
        use_fp8(model_of(None), Fp8Config(backend="transformer_engine"))
    with pytest.raises(ConfigError, match="Transformer Engine cannot be imported"):
        use_fp8(model_of(None), Fp8Config(fused=True))
    product = TorchProduct(SCALINGS["current"], emulated)
    with pytest.raises(ValueError, match=r"x is torch.float32, the weight torch.bfloat16; needs one dtype"):
        product(torch.ones(16, 16), torch.ones(16, 16, dtype=torch.bfloat16), None)


def test_weights_of_4_bits_are_refused():
    pytest.importorskip("torchao", reason="needs torchao (the extra `qlora`)")
    model = model_of(None)
    linear = model.llm.layers[1].mlp.down_proj
    linear.weight = nn.Parameter(to_nf4(linear.weight), requires_grad=False)
    with pytest.raises(ConfigError, match=r"layers.1.mlp.down_proj holds weights of 4 bits"):
        use_fp8(model, Fp8Config())
    assert model.llm.layers[0].mlp.down_proj.product is None, "half of it was changed"


@pytest.mark.parametrize(
    ("capability", "config", "expected"),
    [
        ((8, 9), Fp8Config(), "scaled_mm"),
        ((8, 0), Fp8Config(), "has compute capability 8.0; FP8 needs 8.9"),
        ((9, 0), Fp8Config(recipe="block"), "Transformer Engine cannot be imported"),
        ((9, 0), Fp8Config(fused=True), "Transformer Engine cannot be imported"),
        ((7, 0), Fp8Config(backend="emulation"), "emulation"),
    ],
)
def test_who_computes_on_a_gpu_without_transformer_engine(monkeypatch, capability, config, expected):
    """Where the recipe can be had without it, the sentence that is printed says what is missing."""
    cuda = SimpleNamespace(get_device_capability=lambda device: capability, get_device_name=lambda device: "a GPU")
    monkeypatch.setattr(fp8.torch, "cuda", cuda)

    def missing():
        raise ConfigError("Transformer Engine cannot be imported (it is not there).")

    monkeypatch.setattr(fp8_te, "engine", missing)
    if expected in ("scaled_mm", "emulation"):
        backend, why = fp8._backend(config, torch.device("cuda"))
        assert backend == expected
        assert ("cannot be imported" in why) == (expected == "scaled_mm")
    else:
        with pytest.raises(ConfigError, match=expected):
            fp8._backend(config, torch.device("cuda"))


# ---- on a GPU


def assert_as_near_as_emulation(config: Fp8Config) -> None:
    """Loss and gradients are as far from bf16's as emulation's are: another order of sums flips roundings to FP8, and
    two roundings of one number are as far apart as either from it."""
    batch, found = batch_of(*range(1, 21)), []
    for way in (None, replace(config, backend="emulation", fused=False), config):
        model = small_model(CFG).to(device="cuda", dtype=torch.bfloat16)
        names = list(model.state_dict())
        if way is not None:
            use_fp8(model, way)
        assert list(model.state_dict()) == names
        found.append({name: tensor.float() for name, tensor in results(model, batch).items()})
        again = results(model, batch, run_layer=recomputed)
        assert torch.equal(again["loss"].float(), found[-1]["loss"])
    bf16, emulation, ours = found
    assert abs(ours["loss"] / emulation["loss"] - 1) < 0.02
    for name, true in bf16.items():
        away, allowed = (ours[name] - true).norm(), 1.5 * (emulation[name] - true).norm() + 0.03 * true.norm()
        assert away <= allowed, (name, away / true.norm(), allowed / true.norm())


def assert_one_product_is_near(config: Fp8Config) -> None:
    """One projection alone rounds the same numbers: what differs is how they are added up."""
    found = []
    for way in (replace(config, backend="emulation"), config):
        model = small_model(CFG).to(device="cuda", dtype=torch.bfloat16)
        use_fp8(model, way)
        linear = model.llm.layers[0].mlp.down_proj
        torch.manual_seed(0)
        x = torch.randn(100, 384, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        y = linear(x)
        y.backward(torch.randn(y.shape, device="cuda", dtype=torch.bfloat16))
        found.append((y.detach(), x.grad, linear.weight.grad))
    for ours, theirs in zip(*found, strict=True):
        assert (ours.float() - theirs.float()).norm() < 0.01 * theirs.float().norm()


@pytest.mark.gpu
def test_on_a_gpu_torch_s_product_is_near_its_emulation():
    assert_one_product_is_near(Fp8Config(backend="scaled_mm"))
    assert_as_near_as_emulation(Fp8Config(backend="scaled_mm"))
