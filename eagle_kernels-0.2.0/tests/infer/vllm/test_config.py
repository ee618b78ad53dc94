"""config.json as vLLM reads it."""

import json

from transformers import Qwen2Config, SiglipVisionConfig

from eagle_model.infer.vllm.config import EagleVLLMConfig
from tests.infer.vllm.cases import folder_of


def test_a_saved_models_config_has_its_parts(tmp_path):
    folder_of(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    config = EagleVLLMConfig.from_pretrained(tmp_path)
    assert isinstance(config.vision_config, SiglipVisionConfig) and isinstance(config.text_config, Qwen2Config)
    assert config.get_text_config() is config.text_config
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
        assert getattr(config.text_config, name) == written["text_config"][name]
        assert getattr(config.vision_config, name) == written["vision_config"][name]
    assert (config.downsample_ratio, config.select_layer) == (0.5, -1)
    assert config.architectures == ["Eagle2_5_VLForConditionalGeneration"]
    again = EagleVLLMConfig.from_dict(config.to_dict())
    assert again.text_config.hidden_size == config.text_config.hidden_size
