"""Transformer Engine's FP8 modules over a language model's own weights. The one file that imports it.

    who = convert(model.llm, linears, "current", fused=False)      # "Transformer Engine 2.20.2"

Weights  stay where they are, under their names: Transformer Engine's modules are built on "meta", hold none, and are
         handed them at each call. They are no part of the model's tree, so neither parameters nor `_extra_state`, a
         pickle, of theirs gets into a state_dict or a checkpoint.
Fused    `LayerNormLinear` takes the place of input_layernorm and qkv_proj, `LayerNormMLP` that of
         post_attention_layernorm and mlp: what the norm gives is rounded to FP8 at once and never stored in bf16.
Recipes  Stateless ones alone, each made with all that decides a number: environment variables that would change one are
         refused.
Source   Transformer Engine 2.20. What is called of it, the tests compare with that version's own signatures
         (tests/golden/transformer_engine.json).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from eagle_model.fields import ConfigError, few
from eagle_model.model.fp8_config import SCALINGS
from eagle_model.model.fp8_quantize import pad_rows
from eagle_model.model.linear import Linear, Product
from eagle_model.model.llm import MLP, AddRMSNorm, Decoder, DecoderLayer, RMSNorm
from eagle_model.model.recompute import in_chunks

Norm = TypeVar("Norm", bound=nn.RMSNorm)
VERSION = "2.20"  # the release that the calls here are written for
INSTALL = (
    "It has no wheel for torch and is compiled, which takes nvcc, cuDNN's headers and some minutes: pip install "
    f"--no-build-isolation 'transformer_engine[pytorch,core_cu13]=={VERSION}.*' (core_cu12 for a torch with CUDA 12)"
)
DEVICES = ("cuda",)
# They change what Transformer Engine computes; a run's numbers are its config's.
NUMERIC_VARIABLES = (
    "NVTE_BACKWARD_OVERRIDE",
    "NVTE_FP8_BLOCK_SCALING_FP32_SCALES",
    "NVTE_FP8_CURRENT_SCALING_POWER_2_SCALES",
)


class Engine(NamedTuple):
    te: Any  # transformer_engine.pytorch
    recipes: Any  # transformer_engine.common.recipe
    version: str


def engine() -> Engine:
    """Raises ConfigError that says how to install it, unless it is there in VERSION or a later one."""
    try:
        import transformer_engine
        import transformer_engine.pytorch as te
        from transformer_engine.common import recipe as recipes
    except (ImportError, OSError, RuntimeError, AssertionError) as error:  # by which part of it is missing
        raise ConfigError(f"Transformer Engine cannot be imported ({error}). {INSTALL}.") from error
    version = transformer_engine.__version__
    if tuple(map(int, version.split(".")[:2])) < tuple(map(int, VERSION.split("."))):
        raise ConfigError(f"Transformer Engine is {version}; needs {VERSION} or later. {INSTALL}.")
    return Engine(te, recipes, version)


def check(recipe: str, device: torch.device) -> None:
    """Raises ConfigError unless Transformer Engine is there and computes this recipe on the device."""
    te = engine().te
    if device.type not in DEVICES:
        raise ConfigError(
            f"the model is on {device.type}; Transformer Engine needs a GPU. backend=emulation runs there."
        )
    if changed := [name for name in NUMERIC_VARIABLES if os.environ.get(name, "0") not in ("", "0")]:
        raise ConfigError(f"{few(changed)} changes what Transformer Engine computes; unset it.")
    available = {
        "current": te.is_fp8_available,
        "block": te.is_fp8_block_scaling_available,
        "mxfp8": te.is_mxfp8_available,
    }
    can, why = available[recipe](return_reason=True)
    if not can:
        others = [name for name, test in available.items() if test(return_reason=True)[0]]
        there_are = f"Here are {', '.join(others)}." if others else "Leave fp8 out on this GPU."
        raise ConfigError(f"recipe={recipe} cannot be computed here: {why} {there_are}")


def convert(llm: Decoder, linears: Mapping[str, Linear], recipe: str, *, fused: bool) -> str:
    """Gives the projections their products. Returns who computes."""
    te, recipes, version = engine()
    settings = Settings(te=te, recipe=_recipe(recipes, recipe), multiple=SCALINGS[recipe].multiple)
    for linear in linears.values():
        linear.product = LinearProduct.of(linear, settings)
    if fused:
        for layer in llm.layers:
            assert isinstance(layer, DecoderLayer)
            _fuse(layer, settings)
    return f"Transformer Engine {version}{', norms fused' if fused else ''}"


def _recipe(recipes: Any, name: str) -> Any:
    if name == "current":
        return recipes.Float8CurrentScaling(
            use_power_2_scales=False, fp8_format=recipes.Format.HYBRID, backward_override=None
        )
    if name == "block":
        return recipes.Float8BlockScaling(
            use_f32_scales=False, fp8_format=recipes.Format.E4M3,
            x_block_scaling_dim=1, w_block_scaling_dim=2, grad_block_scaling_dim=1, backward_override=None,
        )  # fmt: skip
    return recipes.MXFP8BlockScaling(
        fp8_format=recipes.Format.E4M3, enable_2d_quantization=False, backward_override=None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    te: Any
    recipe: Any
    multiple: int

    def call(self, module: nn.Module, weights: dict[str, Tensor], x_TC: Tensor) -> Tensor:
        """The module of x with these weights in place of the ones it was built with, on "meta"."""
        # Entered at each call, so that a layer which is computed again in backward does the same.
        with self.te.autocast(enabled=True, recipe=self.recipe):
            out_TF: Tensor = functional_call(module, weights, (pad_rows(x_TC, self.multiple),))
        return out_TF[: len(x_TC)]


def _named(weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}


@dataclass(frozen=True, slots=True)
class LinearProduct(Product):
    settings: Settings
    module: nn.Module

    @classmethod
    def of(cls, linear: Linear, settings: Settings) -> LinearProduct:
        module = settings.te.Linear(
            linear.in_features, linear.out_features, bias=linear.bias is not None,
            params_dtype=linear.weight.dtype, device="meta",
        )  # fmt: skip
        return cls(settings, module)

    def __call__(self, x_TC: Tensor, weight_FC: Tensor, bias_F: Tensor | None) -> Tensor:
        return self.settings.call(self.module, _named(weight_FC, bias_F), x_TC)

    def checkpoint(self, layer: nn.Module, *args: Any) -> Any:
        # A bound method, because of a module it asks whether Transformer Engine's modules are in its tree.
        return self.settings.te.checkpoint(layer.__call__, *args, use_reentrant=False)


@dataclass(frozen=True, slots=True)
class NormLinearProduct(LinearProduct):
    """Of x before the norm whose weight it takes."""

    norm: nn.Module = None  # type: ignore[assignment]

    def __call__(self, x_TC: Tensor, weight_FC: Tensor, bias_F: Tensor | None) -> Tensor:
        assert isinstance(self.norm.weight, Tensor)
        return self.settings.call(
            self.module, {"layer_norm_weight": self.norm.weight, **_named(weight_FC, bias_F)}, x_TC
        )


class PassedOn(RMSNorm):
    """A norm that the projection after it computes: it keeps the weight under its name, and gives what it gets."""

    def forward(self, x_TD: Tensor) -> Tensor:
        return x_TD


class SumPassedOn(AddRMSNorm):
    def forward(self, x_TD: Tensor, residual_TD: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        sum_TD = x_TD + residual_TD
        return sum_TD, sum_TD


class NormMLP(nn.Module):
    """An MLP and the norm before it as one module of Transformer Engine's; gate_up_proj, down_proj keep their names."""

    def __init__(self, mlp: MLP, norm: nn.RMSNorm, settings: Settings) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = mlp.gate_up_proj, mlp.down_proj
        has_bias = mlp.down_proj.bias is not None
        module = settings.te.LayerNormMLP(
            mlp.down_proj.out_features, mlp.down_proj.in_features, eps=norm.eps, bias=has_bias,
            normalization="RMSNorm", activation="swiglu", params_dtype=norm.weight.dtype, device="meta",
        )  # fmt: skip
        self.chunk_tokens = mlp.chunk_tokens
        self.others = (settings, module, norm)  # in a tuple, which is not searched for parameters

    def forward(self, x_TD: Tensor) -> Tensor:
        return in_chunks([self, self.others[2]], self._whole, x_TD, self.chunk_tokens)

    def _whole(self, x_TD: Tensor) -> Tensor:
        settings, module, norm = self.others
        weights: dict[str, Tensor] = {"layer_norm_weight": norm.weight}
        for name, linear in (("fc1", self.gate_up_proj), ("fc2", self.down_proj)):
            weights |= {f"{name}_{key}": tensor for key, tensor in _named(linear.weight, linear.bias).items()}
        return settings.call(module, weights, x_TD)


def _fuse(layer: DecoderLayer, settings: Settings) -> None:
    linear, norm, after = layer.self_attn.qkv_proj, layer.input_layernorm, layer.post_attention_layernorm
    module = settings.te.LayerNormLinear(
        linear.in_features, linear.out_features, eps=norm.eps, bias=linear.bias is not None,
        normalization="RMSNorm", params_dtype=linear.weight.dtype, device="meta",
    )  # fmt: skip
    layer.input_layernorm = _with_weight_of(norm, PassedOn)
    layer.post_attention_layernorm = _with_weight_of(after, SumPassedOn)
    linear.product = NormLinearProduct(settings, module, layer.input_layernorm)
    layer.mlp = NormMLP(layer.mlp, layer.post_attention_layernorm, settings)  # type: ignore[assignment]


def _with_weight_of(norm: nn.RMSNorm, kind: type[Norm]) -> Norm:
    made = kind(norm.normalized_shape, eps=norm.eps, device="meta")
    made.weight = norm.weight
    return made
