"""Eagle 2.5: data, model and trainer on top of `eagle_kernels`."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eagle_model.batch import PackedBatch
    from eagle_model.data.processor import Processor
    from eagle_model.model.eagle import Eagle

__all__ = ["Eagle", "PackedBatch", "Processor"]

_HOMES = {
    "Eagle": "eagle_model.model.eagle",
    "PackedBatch": "eagle_model.batch",
    "Processor": "eagle_model.data.processor",
}


def __getattr__(name: str) -> object:
    """Loaded on first use: the command line must be able to say which extra is missing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'eagle_model' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
