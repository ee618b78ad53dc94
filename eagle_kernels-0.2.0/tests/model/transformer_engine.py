"""A stand-in for Transformer Engine on a CPU: what fp8_te.py calls of it, with its signatures and its checks.

    with installed(monkeypatch) as calls: ...    # `import transformer_engine` finds it; calls: what was called, by name

Signatures come from the golden file, so that a keyword which Transformer Engine lacks fails here too. What a module
computes is FP8 as fp8.py emulates it, with the weights it holds while it is called; outside of `autocast` bf16. Norms
and SwiGLU are our ops, so that fused and apart are the same numbers.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F

from eagle_kernels.rms_norm import rms_norm
from eagle_kernels.swiglu import swiglu_halves
from eagle_model.model import fp8_te
from eagle_model.model.fp8 import TorchProduct, emulated
from eagle_model.model.fp8_config import SCALINGS

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/transformer_engine.json").read_text())
SIGNATURES = GOLDEN["signatures"]
RECIPES = {"Float8CurrentScaling": "current", "Float8BlockScaling": "block", "MXFP8BlockScaling": "mxfp8"}


def bound(name: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of a call by their names. Raises TypeError where Transformer Engine would."""
    kinds = inspect.Parameter
    known = [
        kinds(key, kinds.POSITIONAL_OR_KEYWORD, default=kinds.empty if default is None else default)
        for key, default in SIGNATURES[name]["parameters"].items()
        if not key.startswith("*")
    ]
    call = inspect.Signature(known).bind(*args, **kwargs)
    return dict(call.arguments)


class StandIn:
    """One installation: what is entered and called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.entered: list[Any] = []
        self.unavailable: dict[str, str] = {}

    def product(self) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        if not self.entered:
            return F.linear
        scaling = SCALINGS[self.entered[-1].name]
        return TorchProduct(scaling, emulated)

    def called(self, name: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        given = bound(name, *args, **kwargs)
        self.calls.append((name, given))
        return given

    def recipe(self, name: str) -> Callable[..., Any]:
        return lambda **kwargs: SimpleNamespace(name=RECIPES[name], given=self.called(f"recipes.{name}", **kwargs))

    def available(self, name: str) -> Callable[..., Any]:
        def test(return_reason: bool = False) -> Any:
            reason = self.unavailable.get(name, "")
            return (not reason, reason) if return_reason else not reason

        return test

    def checkpoint(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        assert set(kwargs) <= set(SIGNATURES["te.checkpoint"]["keywords"])
        assert not isinstance(function, nn.Module), "it would look for its modules in the tree and find none"
        self.calls.append(("te.checkpoint", kwargs))
        return torch.utils.checkpoint.checkpoint(function, *args, **kwargs)

    def modules(self) -> tuple[ModuleType, ...]:
        top, te, common, recipes = (
            ModuleType(f"transformer_engine{name}") for name in ("", ".pytorch", ".common", ".common.recipe")
        )
        top.__version__ = GOLDEN["version"]
        top.pytorch, top.common, common.recipe = te, common, recipes
        recipes.Format = SimpleNamespace(**{name: name for name in SIGNATURES["recipes.Format"]["members"]})
        for name in RECIPES:
            setattr(recipes, name, self.recipe(name))
        for name in ("is_fp8_available", "is_fp8_block_scaling_available", "is_mxfp8_available"):
            setattr(te, name, self.available(name))
        te.checkpoint = self.checkpoint
        te.autocast = lambda *args, **kwargs: Autocast(self, self.called("te.autocast", *args, **kwargs))
        for kind in (Linear, LayerNormLinear, LayerNormMLP):
            setattr(te, kind.__name__, lambda *args, kind=kind, **kwargs: kind(self, *args, **kwargs))
        return top, te, common, recipes


class Autocast:
    def __init__(self, engine: StandIn, given: dict[str, Any]) -> None:
        self.engine, self.given = engine, given

    def __enter__(self) -> Autocast:
        assert self.given.get("enabled", True)
        self.engine.entered.append(self.given["recipe"])
        return self

    def __exit__(self, *exc: object) -> None:
        self.engine.entered.pop()


class Module(nn.Module):
    """What all three have in common: parameters by the golden names, a state that is a pickle, checks of its input."""

    def __init__(self, engine: StandIn, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.kind = f"te.{type(self).__name__}"
        self.engine, self.given = engine, engine.called(self.kind, *args, **kwargs)
        self.has_bias = self.given.get("bias", True)
        shapes = self.shapes()
        assert set(shapes) <= set(SIGNATURES[self.kind]["weights"])
        for name, shape in shapes.items():
            empty = torch.empty(shape, dtype=self.given["params_dtype"], device=self.given["device"])
            self.register_parameter(name, nn.Parameter(empty))

    def get_extra_state(self) -> Tensor:
        return torch.frombuffer(bytearray(b"a pickle"), dtype=torch.uint8)

    def forward(self, inp: Tensor, is_first_microbatch: bool | None = None) -> Tensor:
        self.engine.calls.append((f"{self.kind}.forward", {"rows": len(inp)}))
        assert len(inp) % 8 == 0 == inp.shape[1] % 16, "FP8 execution requires these"
        for name, parameter in self.named_parameters():
            assert not parameter.is_meta, name
            assert parameter.dtype == inp.dtype, name
        return self.computed(inp)

    def normed(self, x: Tensor) -> Tensor:
        assert self.given["normalization"] == "RMSNorm"
        return rms_norm(x, self.layer_norm_weight, self.given["eps"])

    def linear(self, x: Tensor, prefix: str = "") -> Tensor:
        bias = getattr(self, f"{prefix}bias") if self.has_bias else None
        return self.engine.product()(x, getattr(self, f"{prefix}weight"), bias)


class Linear(Module):
    def shapes(self) -> dict[str, tuple[int, ...]]:
        C, F_ = self.given["in_features"], self.given["out_features"]
        return {"weight": (F_, C)} | ({"bias": (F_,)} if self.has_bias else {})

    def computed(self, inp: Tensor) -> Tensor:
        return self.linear(inp)


class LayerNormLinear(Linear):
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"layer_norm_weight": (self.given["in_features"],), **super().shapes()}

    def computed(self, inp: Tensor) -> Tensor:
        return self.linear(self.normed(inp))


class LayerNormMLP(Module):
    def shapes(self) -> dict[str, tuple[int, ...]]:
        C, F_ = self.given["hidden_size"], self.given["ffn_hidden_size"]
        biases = {"fc1_bias": (2 * F_,), "fc2_bias": (C,)} if self.has_bias else {}
        return {"layer_norm_weight": (C,), "fc1_weight": (2 * F_, C), "fc2_weight": (C, F_), **biases}

    def computed(self, inp: Tensor) -> Tensor:
        assert self.given["activation"] == "swiglu"
        return self.linear(swiglu_halves(self.linear(self.normed(inp), "fc1_")), "fc2_")


def installed(monkeypatch: Any) -> StandIn:
    engine = StandIn()
    for module in engine.modules():
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(fp8_te, "DEVICES", ("cpu", "cuda", "meta"))
    return engine
