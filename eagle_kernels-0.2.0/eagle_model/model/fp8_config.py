"""What of a model is computed in FP8 and how, as a config; the numbers of each recipe, without torch.

    config = Fp8Config(recipe="block")
    SCALINGS[config.recipe].multiple             # 128: rows and widths of a product are multiples of it

Formats  e4m3: 3 bits of mantissa, to 448. e5m2: 2 bits, to 57344, for gradients that spread wider.
Source   Micikevicius et al. 2022, arXiv:2209.05433; DeepSeek-AI 2024, arXiv:2412.19437 (blocks); OCP Microscaling 1.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from eagle_model.fields import ConfigError, require, shown

WHY_NOT_DELAYED = (
    "scales of steps before make a state that a resumed run needs, and Transformer Engine pickles it. Take current, "
    "whose scales come from the numbers at hand"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """Which numbers share a scale. `block` of them lie along the dimension that a product sums over."""

    multiple: int  # rows and widths of a product must be multiples of it: what the kernels and the blocks need
    block: int | None  # None: all numbers of a tensor share one
    square_weights: bool  # a weight's blocks are block x block, so that they serve both directions
    power_of_2: bool  # scales are: rounding them then costs range alone
    gradient_format: Literal["e4m3", "e5m2"]


SCALINGS = {  # as Transformer Engine 2.20 has them
    "current": Scaling(multiple=16, block=None, square_weights=False, power_of_2=False, gradient_format="e5m2"),
    "block": Scaling(multiple=128, block=128, square_weights=True, power_of_2=True, gradient_format="e4m3"),
    "mxfp8": Scaling(multiple=32, block=32, square_weights=False, power_of_2=True, gradient_format="e4m3"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8Config:
    """The language model's projections in FP8: how numbers are scaled, and who computes."""

    recipe: str = "current"  # what shares a scale: current (a tensor), block (128, or 128 x 128 weights), mxfp8 (32)
    backend: Literal["auto", "transformer_engine", "scaled_mm", "emulation"] = (
        "auto"  # on a GPU Transformer Engine where it is installed, else torch's own product; on a CPU emulation
    )
    fused: bool = False  # norm, rounding and product in one module of Transformer Engine's

    def __post_init__(self) -> None:
        if "delayed" in self.recipe.lower():
            raise ConfigError(f"recipe is {shown(self.recipe)}, which is refused: {WHY_NOT_DELAYED}.")
        require(self.recipe in SCALINGS, "recipe", shown(self.recipe), f"one of {', '.join(SCALINGS)}")
        if self.backend == "scaled_mm":
            require(
                self.recipe == "current", "with backend=scaled_mm, recipe", self.recipe, "current: torch has no more"
            )
        if self.fused and self.backend not in ("auto", "transformer_engine"):
            raise ConfigError(
                f"fused is true with backend={self.backend}; only Transformer Engine has such modules: "
                "backend=transformer_engine, or fused=false."
            )

    def check_run(self, *, dtype: str, base_weights: str, has_lora: bool) -> None:
        """Raises ConfigError for a run that cannot be in FP8, by fields of its config."""
        require(dtype == "bfloat16", "with fp8, dtype", dtype, "bfloat16: what is not in FP8 is in bf16, weights too")
        require(
            base_weights == "full",
            "with fp8, base_weights",
            base_weights,
            "full: weights of 4 bits are expanded whenever they are used, and FP8 would round them once more",
        )
        if self.fused and has_lora:
            raise ConfigError(
                "fp8.fused is true with lora: adapters read what the norm gives, which fused modules do not hand out. "
                "Set fp8.fused=false."
            )
