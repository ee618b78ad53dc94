"""AdamW whose moments take 8 bits a number, by torchao, and their form in safetensors.

    adamw = adamw8bit([{"params": [master], "weight_decay": 0.05}], lr=2e-5, betas=(0.9, 0.999), eps=1e-8)
    flat("exp_avg", adamw.state[master]["exp_avg"])      # {"exp_avg_codes": uint8, "exp_avg_scale": fp32}
    joined(flat("exp_avg", moment))["exp_avg"]           # the moment again, bit for bit
    rounded("exp_avg", plain("exp_avg", parts)[8:])      # some of its rows, whose blocks begin elsewhere

256 numbers share an fp32 scale and each is one of 256 values; tensors below 4096 numbers stay as they are. The update
is computed in fp32. torchao compiles it where torch.compile works.

Source   Dettmers et al. 2022, arXiv:2110.02861; torchao.optim, which is imported when first used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

BLOCK = 256  # numbers that share a scale, as in the paper's successor and torchao
MIN_NUMBERS = 4096  # of a tensor whose moments take 8 bits: torchao's, after bitsandbytes
PARTS = ("codes", "scale")  # what differs from moment to moment; the 256 values are the same for all


def adamw8bit(
    groups: list[dict[str, Any]],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    stochastic_rounding: bool = False,
) -> torch.optim.Optimizer:
    """stochastic_rounding: of what an update makes of bf16 weights, drawn from torch's generator of their device.

    A group's "lr" is a tensor, to be changed in place. Raises ModuleNotFoundError without torchao.
    """
    from torchao.optim import AdamW8bit

    return AdamW8bit(groups, lr=lr, betas=betas, eps=eps, block_size=BLOCK, bf16_stochastic_round=stochastic_rounding)


def flat(key: str, value: Tensor) -> dict[str, Tensor]:
    """One entry of the optimizer's state of a parameter, as plain tensors by name."""
    if type(value).__name__ != "OptimState8bit":  # torchao, which is slow to import, need not be there to ask
        return {key: value}
    return {f"{key}_{part}": getattr(value, part) for part in PARTS}


def joined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A parameter's state as the optimizer has it, from the tensors that `flat` made, on their device."""
    whole = {key: value for key, value in state.items() if not key.endswith(tuple(f"_{part}" for part in PARTS))}
    for key in ("exp_avg", "exp_avg_sq"):
        if f"{key}_codes" in state:
            from torchao.optim.subclass_8bit import OptimState8bit

            codes, scale = (state[f"{key}_{part}"] for part in PARTS)
            signed = key == "exp_avg"
            values = OptimState8bit.zeros((BLOCK,), signed, BLOCK, codes.device).qmap
            whole[key] = OptimState8bit(codes, scale, values, signed, dtype=torch.float32)
    return whole


def plain(key: str, state: Mapping[str, Tensor]) -> Tensor:
    """The fp32 numbers of the moment `key`, from the tensors that `flat` made."""
    return state[key] if key in state else joined(state)[key].dequantize()


def rounded(key: str, moment: Tensor) -> dict[str, Tensor]:
    """fp32 numbers of the moment `key` as `flat` would give them: in 8 bits, where torchao has such a tensor so."""
    if moment.numel() < MIN_NUMBERS or moment.numel() % BLOCK:
        return {key: moment}
    from torchao.optim.subclass_8bit import OptimState8bit

    return flat(key, OptimState8bit.zeros(moment.shape, key == "exp_avg", BLOCK, moment.device).copy_(moment))


def shapes(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that an entry named `key` has in the state of a parameter of this shape."""
    if key == "step":
        return ()
    return (torch.Size(shape).numel() // BLOCK,) if key.endswith("_scale") else shape
