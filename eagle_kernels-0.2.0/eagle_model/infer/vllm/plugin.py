"""What vLLM calls in each of its processes, before it reads a model: `vllm serve my-eagle` then serves it as we do.

    vllm serve my-eagle --limit-mm-per-prompt '{"image": 8, "video": 1}'     # eagle-kernels is installed beside vLLM

vLLM 0.33 knows `eagle_2_5_vl` for images alone, with another model's normalisation and tiling. This takes the name over
with the model's own of both, and videos (model.py, inputs.py), and says what its config.json is, so that no code of the
model's folder has to be trusted.
"""

from __future__ import annotations

ARCHITECTURE = "Eagle2_5_VLForConditionalGeneration"
MODEL_TYPE = "eagle_2_5_vl"
CLASS = "eagle_model.infer.vllm.model:EagleForVLLM"  # imported when a model needs it


def register() -> None:
    """May be called any number of times, and in any process."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from eagle_model.infer.vllm.config import EagleVLLMConfig

    AutoConfig.register(MODEL_TYPE, EagleVLLMConfig, exist_ok=True)
    ModelRegistry.register_model(ARCHITECTURE, CLASS)
