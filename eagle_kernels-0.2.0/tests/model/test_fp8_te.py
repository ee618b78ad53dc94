"""Transformer Engine without it: our calls against its signatures, and its branch over a stand-in with these.

On a GPU with Transformer Engine the last tests run the same against the real one.
"""

import ast
import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eagle_model.fields import ConfigError
from eagle_model.model import fp8_te
from eagle_model.model.eagle import Eagle
from eagle_model.model.fp8 import linear_flops, use_fp8
from eagle_model.model.fp8_config import SCALINGS, Fp8Config
from eagle_model.model.recompute import recomputed
from tests.golden.make_transformer_engine import CALLED, signature
from tests.model.samples import small_model
from tests.model.test_fp8 import (
    CFG,
    assert_as_near_as_emulation,
    assert_one_product_is_near,
    batch_of,
    differing,
    model_of,
    results,
)
from tests.model.transformer_engine import GOLDEN, SIGNATURES, StandIn, bound, installed

SOURCE = ast.parse(Path(fp8_te.__file__).read_text())
TE = Fp8Config(backend="transformer_engine")
FUSED = Fp8Config(backend="transformer_engine", fused=True)


@pytest.fixture
def engine(monkeypatch) -> StandIn:
    return installed(monkeypatch)


# ---- our calls beside its signatures


def engine_name(node: ast.AST) -> str | None:
    """te.Linear for `te.Linear`, `self.te.Linear` and `settings.te.Linear`; None for what is not of the engine."""
    if not isinstance(node, ast.Attribute):
        return None
    holder = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", None)
    return f"{holder}.{node.attr}" if holder in ("te", "recipes") else None


def calls(tree: ast.Module) -> list[tuple[str, ast.Call]]:
    found = [(engine_name(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(name, call) for name, call in found if name is not None]


def wrong_calls(tree: ast.Module) -> list[str]:
    """Calls that Transformer Engine's signatures do not take."""
    wrong = []
    for name, call in calls(tree):
        known = SIGNATURES[name]
        takes_all = "**kwargs" in known["parameters"]
        keywords = [keyword.arg for keyword in call.keywords]
        unknown = set(keywords) - set(known.get("keywords", known["parameters"]))
        try:
            if not takes_all:
                bound(name, *call.args, **dict.fromkeys(keywords))
        except TypeError as error:
            unknown |= {str(error)}
        wrong += [f"{name}: {what}" for what in unknown]
    return wrong


def test_every_name_and_keyword_is_transformer_engine_s():
    used = {name for node in ast.walk(SOURCE) if (name := engine_name(node)) and name != "recipes.Format"}
    members = {name for name in used if name.startswith("recipes.Format.")}
    assert used - members == set(CALLED) - {"recipes.Format"}
    assert not wrong_calls(SOURCE)
    assert {name for name, _ in calls(SOURCE)} >= {"te.Linear", "te.LayerNormLinear", "te.LayerNormMLP", "te.autocast"}
    formats = {
        node.attr
        for node in ast.walk(SOURCE)
        if isinstance(node, ast.Attribute) and engine_name(node.value) == "recipes.Format"
    }
    assert formats
    assert formats <= set(SIGNATURES["recipes.Format"]["members"])


@pytest.mark.parametrize(
    "call",
    ["te.Linear(1, 2, biased=True)", "te.Linear(1)", "te.checkpoint(f, reentrant=False)", "te.autocast(recipes=1)"],
)
def test_a_call_that_it_does_not_take_is_seen(call):
    assert wrong_calls(ast.parse(call))


def test_weights_are_given_by_its_names():
    names = {node.value for node in ast.walk(SOURCE) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    known = {name for kind in ("te.LayerNormLinear", "te.LayerNormMLP") for name in SIGNATURES[kind]["weights"]}
    assert {"weight", "bias", "layer_norm_weight"} <= names & known
    assert known - names == {"layer_norm_bias", *(f"fc{i}_{kind}" for i in (1, 2) for kind in ("weight", "bias"))}


def test_every_variable_that_changes_a_recipe_s_numbers_is_refused(engine, monkeypatch):
    """Those that are defaults of what we call, in its source."""
    defaults = [value or "" for known in SIGNATURES.values() for value in known.get("parameters", {}).values()]
    read = {part.split("'")[1] for value in defaults for part in value.split("os.getenv(")[1:]}
    assert read == set(fp8_te.NUMERIC_VARIABLES)
    for name in fp8_te.NUMERIC_VARIABLES:
        monkeypatch.setenv(name, "1")
        with pytest.raises(ConfigError, match=f"{name} changes what Transformer Engine computes; unset it"):
            use_fp8(model_of(None), TE)
        monkeypatch.setenv(name, "0")
    use_fp8(model_of(None), TE)


def test_the_maker_reads_signatures():
    tree = ast.parse(
        "class M(X):\n def __init__(self, a, b=1, *, c='x', **kw):\n  self.register_parameter('w', 0)\n"
        "  self.weight_names = ['v']\n def forward(self, inp, f=None): pass\n"
        "class D:\n a: int = 3\nclass E:\n K = 1\ndef f(x, *args, **kwargs): kwargs.pop('y', 1)\n"
    )
    assert signature(tree, "M") == {
        "parameters": {"a": None, "b": "1", "c": "'x'", "**kw": None},
        "forward": {"inp": None, "f": "None"},
        "weights": ["v", "w"],
    }
    assert signature(tree, "D") == {"parameters": {"a": "3"}}
    assert signature(tree, "E") == {"members": ["K"]}
    assert signature(tree, "f") == {"parameters": {"x": None, "*args": None, "**kwargs": None}, "keywords": ["y"]}
    assert GOLDEN["version"].startswith(fp8_te.VERSION + ".")


# ---- its branch, over a stand-in


@pytest.mark.parametrize("recipe", SCALINGS)
def test_its_modules_compute_with_our_weights(engine, recipe):
    """The stand-in computes as emulation does, so that the way there and back changes nothing."""
    batch = batch_of(9, 14)
    ours = model_of(recipe, backend="transformer_engine")
    assert linear_flops(ours).share > 0.9
    assert not differing(results(ours, batch), results(model_of(recipe), batch))
    forwards = [given for name, given in engine.calls if name == "te.Linear.forward"]
    assert [given["rows"] % SCALINGS[recipe].multiple for given in forwards] == [0] * 8
    recipes = [name for name, _ in engine.calls if name.startswith("recipes.")]
    assert len(recipes) == 1
    assert not engine.entered


@pytest.mark.parametrize("bias", [False, True])
def test_fused_modules_take_the_place_of_norms_and_projections(engine, bias):
    cfg = replace(CFG, text=replace(CFG.text, model_type="llama", mlp_bias=True)) if bias else CFG
    plain, fused = model_of(cfg=cfg), model_of(None, cfg)
    use_fp8(fused, FUSED)
    batch = batch_of(9, 14)
    assert not differing(results(fused, batch), results(plain, batch))
    for model in (fused, plain):
        for layer in model.llm.layers:
            layer.mlp.chunk_tokens = 16
    assert results(fused, batch)["loss"] == results(plain, batch)["loss"]
    called = [name for name, _ in engine.calls if name.endswith(".forward")]
    assert called[:3] == ["te.LayerNormLinear.forward", "te.Linear.forward", "te.LayerNormMLP.forward"]
    assert linear_flops(fused) == linear_flops(plain)


@pytest.mark.parametrize("config", [TE, FUSED], ids=["linear", "fused"])
def test_names_and_files_do_not_change(engine, config, tmp_path):
    """No `_extra_state`, a pickle, in any of them."""
    plain, ours = model_of(None), model_of(None)
    use_fp8(ours, config)
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in plain.named_parameters()]
    ours.save_pretrained(tmp_path / "fp8")
    plain.save_pretrained(tmp_path / "bf16")
    for file in (tmp_path / "bf16").iterdir():
        assert file.read_bytes() == (tmp_path / "fp8" / file.name).read_bytes()
    batch = batch_of(20)
    again = Eagle.from_pretrained(tmp_path / "bf16")
    use_fp8(again, config)
    assert not differing(results(again, batch), results(ours, batch))
    assert not differing(results(Eagle.from_pretrained(tmp_path / "fp8"), batch), results(plain, batch))


@pytest.mark.parametrize("config", [TE, FUSED], ids=["linear", "fused"])
def test_layers_are_computed_again_by_its_checkpoint(engine, config):
    model = model_of(None)
    use_fp8(model, config)
    batch = batch_of(9, 14)
    kept = results(model, batch)
    assert "te.checkpoint" not in [name for name, _ in engine.calls]
    assert not differing(results(model, batch, run_layer=recomputed), kept)
    given = [kwargs for name, kwargs in engine.calls if name == "te.checkpoint"]
    assert given == [{"use_reentrant": False}] * 2


def test_masters_round_into_what_its_modules_take(engine):
    """A weight that is replaced after the switch, as going to bf16 does, is what is multiplied."""
    model = small_model(CFG)
    use_fp8(model, TE)
    model.to(torch.bfloat16)
    assert not differing(results(model, batch_of(16)), results(model_of(), batch_of(16)))


def test_what_it_cannot_do_here_is_said(engine, monkeypatch):
    engine.unavailable = {"is_mxfp8_available": "Device compute capability 10.0 or higher required."}
    with pytest.raises(
        ConfigError, match=r"mxfp8 cannot be computed here: Device .* required. Here are current, block"
    ):
        use_fp8(model_of(None), Fp8Config(recipe="mxfp8", backend="transformer_engine"))
    monkeypatch.setattr(fp8_te, "DEVICES", ("cuda",))
    with pytest.raises(ConfigError, match="the model is on cpu; Transformer Engine needs a GPU"):
        use_fp8(model_of(None), TE)


def test_an_old_one_is_refused(engine, monkeypatch):
    import transformer_engine

    monkeypatch.setattr(transformer_engine, "__version__", "2.9.1")
    with pytest.raises(ConfigError, match=r"Transformer Engine is 2.9.1; needs 2.20 or later. It has no wheel"):
        use_fp8(model_of(None), TE)


# ---- the real one


@pytest.fixture
def real() -> fp8_te.Engine:
    try:
        return fp8_te.engine()
    except ConfigError as error:
        pytest.skip(f"could not import 'transformer_engine': {error}")


@pytest.mark.gpu
def test_the_installed_one_has_the_golden_signatures(real):
    for name in CALLED:
        holder, _, leaf = name.partition(".")
        found = getattr(real.te if holder == "te" else real.recipes, leaf)
        if name == "recipes.Format":
            assert set(found.__members__) >= set(SIGNATURES[name]["members"])
            continue
        parameters = {key.lstrip("*") for key in SIGNATURES[name]["parameters"]}
        assert parameters <= set(inspect.signature(found).parameters), name


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", SCALINGS)
@pytest.mark.parametrize("fused", [False, True])
def test_on_a_gpu_it_is_near_its_emulation(real, recipe, fused):
    try:
        fp8_te.check(recipe, torch.device("cuda"))
    except ConfigError as error:
        pytest.skip(str(error))
    config = Fp8Config(recipe=recipe, backend="transformer_engine", fused=fused)
    if not fused:
        assert_one_product_is_near(config)
    assert_as_near_as_emulation(config)
