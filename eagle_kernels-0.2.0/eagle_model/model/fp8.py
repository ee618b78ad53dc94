"""FP8: the language model's projections multiply numbers of 8 bits. Weights, files and all names stay as they are.

    model = Eagle.from_pretrained("Eagle2.5-8B", dtype=torch.bfloat16, device="cuda")
    print(use_fp8(model, Fp8Config()))           # who computes, and which share of the FLOPs
    ...                                          # train; save_pretrained writes what it always wrote

Dims     T tokens, C width in, F width out of a projection.
Formula  y = q(x) q(W)^T + b;  dx = q(dy) q(W);  dW = q(dy)^T q(x);  q rounds to FP8 with scales from the numbers at
         hand (fp8_quantize.py); sums are fp32; y, dx, dW have x's dtype. With blocks, each product's blocks lie along
         the dimension that it sums over, so x, W and dy are rounded twice, from the same numbers.
Who      `transformer_engine` (fp8_te.py); `scaled_mm`, torch's own FP8 product; `emulation`, fp32 products of the
         rounded numbers, anywhere: the meaning of the other two, and the tests' oracle beside torchao's.
State    None: no scale outlives its product. So checkpoints hold nothing of FP8, and a resumed run computes the same.
Rows     T is padded with zeros to a multiple of 16, 32 or 128, at the end of the row, outside of its documents: once,
         where the row enters (`Eagle.row_multiple`), and by a product that still gets another number, as in generation.
         Zeros change no scale and add nothing to a sum.
Not FP8  docs/fp8.md says what stays in bf16, and why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from eagle_model.fields import ConfigError
from eagle_model.model import fp8_te
from eagle_model.model.eagle import Eagle
from eagle_model.model.fp8_config import SCALINGS, Fp8Config, Scaling
from eagle_model.model.fp8_quantize import Codes, pad_rows, quantize
from eagle_model.model.linear import Linear, Product
from eagle_model.model.nf4 import is_nf4

LEAST_CAPABILITY = (8, 9)  # of a GPU whose tensor cores take FP8: Ada and Hopper were the first


def use_fp8(model: Eagle, config: Fp8Config) -> str:
    """From now on the language model's projections compute in FP8. Call it on a model with its weights and adapters.

    Returns: a sentence that says who computes, and which share of the language model's FLOPs.
    Raises:  ConfigError, with what to do, for a model in FP8 already, of 4 bits, or of widths that do not fit the
             recipe; a GPU or a Transformer Engine that cannot, and a backend that is not there.
    """
    scaling, device = SCALINGS[config.recipe], model.lm_head.weight.device
    linears = {name: module for name, module in model.llm.named_modules() if isinstance(module, Linear)}
    for name, linear in linears.items():
        _check_linear(name, linear, config.recipe)
    if config.fused and model.adapter is not None:
        raise ConfigError("fused is true and the model has adapters, which read what the norm gives. Set fused=false.")
    backend, why = _backend(config, device)
    if backend == "transformer_engine":
        who = fp8_te.convert(model.llm, linears, config.recipe, fused=config.fused)
    else:
        multiply = scaled_mm if backend == "scaled_mm" else emulated
        for linear in linears.values():
            linear.product = TorchProduct(scaling, multiply)
        who = "torch's scaled product" if backend == "scaled_mm" else "emulation, for its numbers and not for speed"
    # A bias makes another row of a row of zeros, whose numbers would count in the scales of the layers after it.
    stays_zero = not (model.cfg.text.attention_bias or model.cfg.text.mlp_bias)
    model.row_multiple = scaling.multiple if stays_zero else 1
    share = 100 * linear_flops(model).share
    return f"FP8 ({config.recipe} scaling) by {who}: {share:.1f} % of the language model's linear FLOPs.{why}"


class Flops(NamedTuple):
    """Of a token's forward: 2 x parameters of the matrices that it meets."""

    in_fp8: int
    all: int

    @property
    def share(self) -> float:
        return self.in_fp8 / self.all


def linear_flops(model: Eagle) -> Flops:
    """Of the language model's matrix products, lm_head's too: attention's own products are none of them."""
    linears = [module for module in model.llm.modules() if isinstance(module, nn.Linear)]
    in_fp8 = [linear for linear in linears if isinstance(linear, Linear) and linear.product is not None]
    return Flops(
        in_fp8=sum(2 * linear.in_features * linear.out_features for linear in in_fp8),
        all=sum(2 * linear.in_features * linear.out_features for linear in [*linears, model.lm_head]),
    )


# ---- what is refused


def _check_linear(name: str, linear: Linear, recipe: str) -> None:
    if linear.product is not None:
        raise ConfigError(f"the model is in FP8 already ({name} has a product of its own); use_fp8 is called once.")
    if is_nf4(linear.weight):
        raise ConfigError(f"{name} holds weights of 4 bits; FP8 would round them once more. Use one of the two.")
    multiple = SCALINGS[recipe].multiple
    for what, width in (("reads", linear.in_features), ("gives", linear.out_features)):
        if width % multiple:
            fitting = [name for name, scaling in SCALINGS.items() if width % scaling.multiple == 0]
            raise ConfigError(
                f"{name} {what} {width} numbers a token; recipe={recipe} needs multiples of {multiple}. "
                + (f"This width fits {', '.join(fitting)}." if fitting else "No recipe fits; leave fp8 out.")
            )


def _backend(config: Fp8Config, device: torch.device) -> tuple[str, str]:
    """(who computes, why it is not Transformer Engine)."""
    wanted, why = config.backend, ""
    if wanted == "auto" and device.type != "cuda":
        wanted = "transformer_engine" if config.fused else "emulation"
    if wanted == "auto":
        try:
            fp8_te.engine()
            wanted = "transformer_engine"
        except ConfigError as error:
            if config.fused or config.recipe != "current":
                raise
            wanted, why = "scaled_mm", f" {error}"
    if wanted == "transformer_engine":
        fp8_te.check(config.recipe, device)
    if wanted == "scaled_mm" and device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < LEAST_CAPABILITY:
            raise ConfigError(
                f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}; FP8 "
                f"needs {LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]}. Leave fp8 out on this GPU."
            )
    return wanted, why


# ---- products in torch

Multiply = Callable[..., Tensor]  # emulated, or scaled_mm


def emulated(a_MK: Codes, b_KN: Codes, dtype: torch.dtype, *, is_forward: bool = False) -> Tensor:
    return (a_MK.expanded() @ b_KN.expanded()).to(dtype)


def scaled_mm(a_MK: Codes, b_KN: Codes, dtype: torch.dtype, *, is_forward: bool = False) -> Tensor:
    """torch._scaled_mm takes a by rows and b by columns. Forward adds up in fewer bits, as Transformer Engine does."""
    return torch._scaled_mm(
        a_MK.values.contiguous(),
        b_KN.values.t().contiguous().t(),
        scale_a=a_MK.scale.reciprocal(),
        scale_b=b_KN.scale.reciprocal(),
        out_dtype=dtype,
        use_fast_accum=is_forward,
    )


@dataclass(frozen=True, slots=True)
class TorchProduct(Product):
    scaling: Scaling
    multiply: Multiply

    def __call__(self, x_TC: Tensor, weight_FC: Tensor, bias_F: Tensor | None) -> Tensor:
        if x_TC.dtype != weight_FC.dtype:
            raise ValueError(f"FP8 product: x is {x_TC.dtype}, the weight {weight_FC.dtype}; needs one dtype.")
        rows_TC = pad_rows(x_TC, self.scaling.multiple)
        out_TF = _Multiply.apply(rows_TC, weight_FC, self.scaling, self.multiply)[: len(x_TC)]
        return out_TF if bias_F is None else out_TF + bias_F

    def checkpoint(self, layer: nn.Module, *args: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(layer, *args, use_reentrant=False)


def _codes(x: Tensor, scaling: Scaling, summed: int, *, is_weight: bool = False, is_gradient: bool = False) -> Codes:
    """x in FP8, for a product that sums over its dimension `summed`."""
    format = scaling.gradient_format if is_gradient else "e4m3"
    n = scaling.block
    if n is None:
        return quantize(x, format, power_of_2=scaling.power_of_2)
    along = (1, n) if summed == 1 else (n, 1)
    block = (n, n) if is_weight and scaling.square_weights else along
    return quantize(x, format, block=block, power_of_2=scaling.power_of_2)


class _Multiply(torch.autograd.Function):
    """Keeps x in FP8 for backward, a byte a number, and the weight itself, which is there anyway."""

    @staticmethod
    def forward(ctx: Any, x_TC: Tensor, weight_FC: Tensor, scaling: Scaling, multiply: Multiply) -> Tensor:
        x_codes = _codes(x_TC, scaling, 1)
        kept = x_codes
        if scaling.block is not None and ctx.needs_input_grad[1]:
            kept = _codes(x_TC, scaling, 0)
        ctx.save_for_backward(kept.values, kept.scale, weight_FC)
        ctx.scaling, ctx.multiply = scaling, multiply
        weight_codes = _codes(weight_FC, scaling, 1, is_weight=True)
        return multiply(x_codes, weight_codes.t(), x_TC.dtype, is_forward=True)

    @staticmethod
    def backward(ctx: Any, dy_TF: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        values, scale, weight_FC = ctx.saved_tensors
        scaling, multiply = ctx.scaling, ctx.multiply
        dx_TC = dweight_FC = None
        dy_codes = _codes(dy_TF, scaling, 1, is_gradient=True)
        if ctx.needs_input_grad[0]:
            dx_TC = multiply(dy_codes, _codes(weight_FC, scaling, 0, is_weight=True), dy_TF.dtype)
        if ctx.needs_input_grad[1]:
            if scaling.block is not None:
                dy_codes = _codes(dy_TF, scaling, 0, is_gradient=True)
            dweight_FC = multiply(dy_codes.t(), Codes(values, scale), dy_TF.dtype)
        return dx_TC, dweight_FC, None, None
