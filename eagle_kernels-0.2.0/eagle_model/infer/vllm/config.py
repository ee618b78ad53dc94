"""config.json of an Eagle 2.5 as vLLM wants it: an object of transformers' with the parts as its own config classes.

    EagleVLLMConfig.from_pretrained("my-eagle").text_config.hidden_size

Fields that no class names are kept as they are; those that older files lack have the release's values.
"""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig, SiglipVisionConfig


class EagleVLLMConfig(PretrainedConfig):
    model_type = "eagle_2_5_vl"

    def __init__(
        self, vision_config: dict[str, Any] | None = None, text_config: dict[str, Any] | None = None, **fields: Any
    ) -> None:
        vision, text = vision_config or {}, text_config or fields.pop("llm_config", None) or {}
        if not isinstance(vision, PretrainedConfig):
            vision = SiglipVisionConfig(**{**vision, "model_type": "siglip_vision_model"})
        if not isinstance(text, PretrainedConfig):
            text = CONFIG_MAPPING[text.get("model_type", "qwen2")](**text)
        self.vision_config, self.text_config = vision, text
        given = {"force_image_size": None, "downsample_ratio": 0.5, "select_layer": -1} | fields
        super().__init__(**given)

    def get_text_config(self, *_: Any, **__: Any) -> PretrainedConfig:
        return self.text_config
