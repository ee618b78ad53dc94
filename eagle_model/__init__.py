"""Eagle 2.5: data, model and trainer on top of `eagle_kernels`."""

from eagle_model.batch import PackedBatch
from eagle_model.data.processor import Processor
from eagle_model.model.eagle import Eagle

__all__ = ["Eagle", "PackedBatch", "Processor"]
