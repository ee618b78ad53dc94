"""Rotary frequencies that are stretched for longer contexts, as transformers defines them.

    scaling = RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=32_768)
    frequencies_W2 = scaling.frequencies(head_dim=128, theta=1e6)      # fp32 on the CPU; rope takes them and
    scaling.scale                                                      # 1.1386: what cos and sin are multiplied by

Dims     T tokens, W head width, W2 = W / 2 pairs of a head.
Kinds    linear   every frequency / factor.
         yarn     slow pairs / factor, fast ones as they were, a ramp between; cos and sin grow with log(factor).
         llama3   the same by wavelengths: above one limit / factor, below another unchanged, a blend between.
         dynamic  theta grows with the length of a token's document, once that is beyond what the model was trained on.
                  transformers takes the length of the longest row of a batch; here it is the document's own, so that a
                  document is computed alike wherever it is packed.
Numbers  fp32, in transformers' order of operations.
Source   transformers' modeling_rope_utils; YaRN: Peng et al. 2023, arXiv:2309.00071.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from eagle_kernels.rope import rope_frequencies
from eagle_model.fields import shown

_LENGTH = "original_max_position_embeddings"
BETA_FAST, BETA_SLOW = 32.0, 1.0  # YaRN's, where a config.json has none
# Fields of each kind: those it needs, and those it may have.
_NEEDS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", _LENGTH),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _LENGTH),
}
# What no kind here has and transformers' classes of these models pass over too, unless it asks for another computation.
_OF_OTHERS = ("mrope_section", "long_factor", "short_factor")
_MAY_HAVE = {"yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")}


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """`rope_scaling` of a config.json. A field that a kind does not have is None."""

    rope_type: Literal["linear", "dynamic", "yarn", "llama3"]
    factor: float
    original_max_position_embeddings: int | None = None  # tokens of a document that the model was trained on
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None  # `scale` itself; None derives it from factor, or from the two mscales
    beta_fast: float | None = None  # turns within the trained length: pairs with more are left alone; 32
    beta_slow: float | None = None  # pairs with fewer are divided by factor; 1
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None  # whether the ramp begins and ends at whole pairs; true

    def __post_init__(self) -> None:
        if self.rope_type not in _NEEDS:
            raise ValueError(f"RopeScaling: rope_type is {shown(self.rope_type)}; needs one of {', '.join(_NEEDS)}.")
        needs, may_have = _NEEDS[self.rope_type], _MAY_HAVE.get(self.rope_type, ())
        for name in self.__slots__[1:]:
            value = getattr(self, name)
            if value is None and name not in needs:
                continue
            if name not in (*needs, *may_have):
                raise ValueError(f"RopeScaling: {name} is {shown(value)}; {self.rope_type} has no such field.")
            if name == "truncate":
                ok, need = type(value) is bool, "true or false"
            elif name == _LENGTH:
                ok, need = type(value) is int and value >= 1, "a whole number of at least 1"
            else:
                least = 1 if name == "factor" else 0
                ok = type(value) in (int, float) and least <= value < math.inf
                need = f"a number of at least {least}"
            if not ok:
                raise ValueError(f"RopeScaling: {name} is {shown(value)}; {self.rope_type} needs {need}.")
        if self.rope_type == "llama3" and not self.low_freq_factor < self.high_freq_factor:  # type: ignore[operator]
            raise ValueError(
                f"RopeScaling: low_freq_factor is {self.low_freq_factor} and high_freq_factor {self.high_freq_factor}; "
                f"needs the first below the second."
            )

    def check_head_dim(self, head_dim: int) -> None:
        """Raises ValueError for a head width that the formula divides by zero for."""
        if self.rope_type == "dynamic" and head_dim == 2:
            raise ValueError("RopeScaling: heads are 2 wide; dynamic needs at least 4.")

    @classmethod
    def from_dict(cls, where: str, fields: Mapping[str, Any], *, max_position_embeddings: Any) -> RopeScaling | None:
        """From `rope_scaling` or `rope_parameters` without its theta; None for plain rotary positions.

        max_position_embeddings: the model's, where the fields do not say what length it was trained on. `where` names
        the part of the file in an error. Fields that the kind does not have change nothing and are passed over, as
        transformers does. Raises ValueError for a kind or a field that asks for another computation.
        """
        fields = dict(fields)
        kind, old_name = fields.pop("rope_type", None), fields.pop("type", None)  # transformers' older name
        if kind is not None and old_name is not None and kind != old_name:
            raise ValueError(f"{where}: rope_type is {shown(kind)} but type {shown(old_name)}; they must agree.")
        kind = old_name if kind is None else kind
        given = shown({"rope_type": kind, **fields})
        if others := [name for name, x in fields.items() if name in _OF_OTHERS or isinstance(x, Mapping)]:
            raise ValueError(f"{where} is {given}; this model has no {shown(others[0])}.")
        if kind is None and fields.get("factor") is not None:
            raise ValueError(f"{where} is {given}; needs rope_type beside factor.")
        if kind in (None, "default"):
            return None
        if kind not in list(_NEEDS):  # a list, because what a file says need not be hashable
            raise ValueError(f"{where} is {given}; this model computes rope_type default, {', '.join(_NEEDS)} only.")
        fields = {name: x for name, x in fields.items() if name in (*_NEEDS[kind], *_MAY_HAVE.get(kind, ()))}
        if _LENGTH in _NEEDS[kind] and fields.get(_LENGTH) is None:
            fields[_LENGTH] = max_position_embeddings
        if missing := [name for name in _NEEDS[kind] if fields.get(name) is None]:
            raise ValueError(f"{where} is {given}; {kind} needs {missing[0]}.")
        try:
            return cls(rope_type=kind, **fields)
        except ValueError as error:
            raise ValueError(f"{where}: {str(error).removeprefix('RopeScaling: ')}") from error

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}

    @property
    def scale(self) -> float:
        """What cos and sin are multiplied by: `rope`'s scale."""
        if self.rope_type != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor

        def grown(weight: float) -> float:
            return 0.1 * weight * math.log(self.factor) + 1.0

        if self.mscale and self.mscale_all_dim:
            return grown(self.mscale) / grown(self.mscale_all_dim)
        return grown(1.0)

    def frequencies(self, *, head_dim: int, theta: float) -> Tensor:
        """(W2,) fp32 on the CPU: how far a pair turns a position. Not for `dynamic`, whose documents differ."""
        plain_W2 = rope_frequencies(head_dim, theta)
        if self.rope_type == "yarn":
            return self._yarn(head_dim, theta, plain_W2)
        if self.rope_type == "llama3":
            return self._llama3(plain_W2)
        return plain_W2 / self.factor

    def dynamic_frequencies(
        self, lengths_T: Tensor, *, head_dim: int, theta: float, max_position_embeddings: int
    ) -> Tensor:
        """(T, W2) fp32 on lengths' device, for tokens of documents of `lengths_T` tokens; for `dynamic` alone."""
        trained = float(max_position_embeddings)
        lengths_T1 = lengths_T[:, None].float().clamp(min=trained)
        growth_T1 = (self.factor * lengths_T1 / trained - (self.factor - 1)) ** (head_dim / (head_dim - 2))
        # Where nothing grows, the plain frequencies to the bit: 1.3 * 1 - (1.3 - 1) is not quite 1.
        growth_T1 = growth_T1.masked_fill(lengths_T1 == trained, 1.0)
        exponents_W2 = torch.arange(0, head_dim, 2, dtype=torch.float32, device=lengths_T.device) / head_dim
        return 1.0 / (theta * growth_T1) ** exponents_W2

    def _yarn(self, head_dim: int, theta: float, plain_W2: Tensor) -> Tensor:
        length = self.original_max_position_embeddings or 1

        def pair_that_turns(times: float) -> float:
            """Which pair, as a real number, makes so many turns within the trained length."""
            return head_dim * math.log(length / (times * 2 * math.pi)) / (2 * math.log(theta))

        first, last = pair_that_turns(self.beta_fast or BETA_FAST), pair_that_turns(self.beta_slow or BETA_SLOW)
        if self.truncate is not False:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_dim - 1)
        if first == last:
            last += 0.001  # a step, without a division by zero
        ramp_W2 = ((torch.arange(head_dim // 2, dtype=torch.float32, device="cpu") - first) / (last - first)).clamp(
            0, 1
        )
        powers_W2 = theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim)
        slowed_W2 = 1.0 / (self.factor * powers_W2)
        return slowed_W2 * ramp_W2 + plain_W2 * (1 - ramp_W2)

    def _llama3(self, plain_W2: Tensor) -> Tensor:
        assert self.low_freq_factor is not None and self.high_freq_factor is not None
        turns_W2 = (self.original_max_position_embeddings or 1) / (2 * math.pi / plain_W2)  # within the trained length
        blend_W2 = (turns_W2 - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blended_W2 = (1 - blend_W2) * plain_W2 / self.factor + blend_W2 * plain_W2
        slow_W2 = torch.where(turns_W2 < self.low_freq_factor, plain_W2 / self.factor, blended_W2)
        return torch.where(turns_W2 > self.high_freq_factor, plain_W2, slow_W2)
