"""The model: SigLIP2, connector and Qwen2.5, Qwen3 or Llama on packed rows."""

from eagle_model.model.config import EagleConfig, TextConfig, VisionConfig, eagle2_1b, eagle2_2b, eagle2_5_8b, tiny
from eagle_model.model.eagle import Eagle, build, load

__all__ = [
    "Eagle",
    "EagleConfig",
    "TextConfig",
    "VisionConfig",
    "build",
    "eagle2_1b",
    "eagle2_2b",
    "eagle2_5_8b",
    "load",
    "tiny",
]
