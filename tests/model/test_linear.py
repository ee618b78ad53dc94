"""Linear layers are found by their class."""

from torch import nn

from eagle_model.model.config import tiny
from eagle_model.model.eagle import build
from eagle_model.model.linear import FusedLinear, Linear


def test_every_projection_is_one():
    """So that who replaces them by class has all of them, and not the output head."""
    model = build(tiny(vocab_size=97, image_token_id=96))
    kinds = {name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    others = {name for name, kind in kinds.items() if not issubclass(kind, Linear)}
    assert others == {"lm_head"}
    assert len(kinds) == 1 + 2 * 4 + 2 + 3 * 4 + 1
    fused = {name.split(".")[-1] for name, kind in kinds.items() if kind is FusedLinear}
    assert fused == {"qkv_proj", "gate_up_proj"}
