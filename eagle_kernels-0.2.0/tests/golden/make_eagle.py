"""Small random checkpoints of Eagle 2.5, written and computed by LeRobot's class: what tests/golden/eagle holds.

LeRobot 0.4.4 ships the model file of NVIDIA's release (with transformers 4's names and its own class name). It needs
transformers 4, so this runs in an environment of its own, and the tests need only the files that it wrote:

    pip install --target old --no-deps transformers==4.57.1 tokenizers==0.22.1 huggingface_hub==0.35.3 peft==0.17.1
    pip download lerobot==0.4.4 --no-deps && unzip lerobot-0.4.4-*.whl 'lerobot/policies/groot/*'
    PYTHONPATH=old:lerobot/policies/groot python tests/golden/make_eagle.py tests/golden/eagle

torch, safetensors, accelerate and the rest come from the environment of this repository. Each folder has what that
class's `save_pretrained` wrote from bf16 weights, and `golden.safetensors`: pixels, token ids, and what the class makes
of them in fp32 (vision features before the connector, visual tokens after it, the decoder's last hidden states,
logits). `groot` holds the model as GR00T's does: under a prefix, beside tensors of the rest.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
from eagle2_hg_model.configuration_eagle2_5_vl import Eagle25VLConfig
from eagle2_hg_model.modeling_eagle2_5_vl import Eagle25VLForConditionalGeneration
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, SiglipVisionModel

VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
}
IMAGE_TOKEN = 60
QWEN2 = {**TEXT, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope_theta": 1e6}
QWEN3 = {**TEXT, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16, "rope_theta": 1e6}
LLAMA = {**TEXT, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": 5e5}
CASES: dict[str, dict[str, Any]] = {
    # the released 8B's way, in several shards
    "qwen2": {"text_config": QWEN2, "select_layer": -1},
    # GR00T N1.5's: Qwen3 with tied embeddings, one layer in the connector, no pixel shuffle
    "groot": {
        "text_config": {**QWEN3, "tie_word_embeddings": True},
        "select_layer": -1,
        "mlp_connector_layers": 1,
        "use_pixel_shuffle": False,
    },
    "llama": {"text_config": LLAMA, "select_layer": -2, "mlp_connector_layers": 1},
}
CLASSES = {"qwen2": Qwen2ForCausalLM, "qwen3": Qwen3ForCausalLM, "llama": LlamaForCausalLM}
GROOT_PREFIX = "backbone.eagle_model."


def model_of(fields: dict[str, Any]) -> Eagle25VLForConditionalGeneration:
    """The class asks for flash-attn, which no CPU has, when it makes its towers: it is handed them."""
    text = {**fields["text_config"], "attn_implementation": "eager"}
    config = Eagle25VLConfig(
        vision_config=VISION,
        **{**fields, "text_config": text},
        force_image_size=28,
        image_token_index=IMAGE_TOKEN,
        max_dynamic_tiles=12,
        use_thumbnail=True,
        dynamic_image_size=True,
        _attn_implementation="eager",
    )
    config.vision_config._attn_implementation = config.text_config._attn_implementation = "eager"
    vision = SiglipVisionModel(config.vision_config)
    return Eagle25VLForConditionalGeneration(
        config, vision_model=vision, language_model=CLASSES[text["model_type"]](config.text_config)
    )


@torch.no_grad()
def make(folder: Path, name: str) -> None:
    torch.manual_seed(sorted(CASES).index(name))
    model = model_of(CASES[name]).eval()
    # The class views what a transposed convolution gave, which on a CPU needs it in order.
    model.vision_model.vision_model.embeddings.register_forward_hook(lambda _module, _inputs, out: out.contiguous())
    for key, parameter in model.named_parameters():
        parameter.normal_(std=0.2).add_(1 if "norm" in key and key.endswith("weight") else 0)
        parameter.copy_(parameter.bfloat16())  # what is computed with is what is written
    written = copy.deepcopy(model).bfloat16()  # a copy: the frequencies of rotary positions would be rounded too
    written.save_pretrained(folder, max_shard_size="40KB" if name == "qwen2" else "5GB")
    (folder / "generation_config.json").unlink(missing_ok=True)

    num_tiles, tokens_per_tile = 2, 4 if CASES[name].get("use_pixel_shuffle", True) else 16
    pixels = torch.randn(num_tiles, 3, 28, 28).bfloat16().float()
    text = torch.randint(0, IMAGE_TOKEN, (12,))
    ids = torch.cat([text[:5], torch.full((num_tiles * tokens_per_tile,), IMAGE_TOKEN), text[5:]])[None]
    towers = model.vision_model(pixels, output_hidden_states=True)
    layer = CASES[name]["select_layer"]
    out = model(pixels, ids, output_hidden_states=True, return_dict=True)
    golden = {
        "pixels": pixels.bfloat16(),
        "token_ids": ids[0],
        "vision": towers.last_hidden_state if layer == -1 else towers.hidden_states[layer],
        "visual_tokens": model.extract_feature(pixels).flatten(0, 1),
        "hidden": out.hidden_states[-1][0],
        "logits": out.logits[0],
    }
    save_file({key: tensor.contiguous() for key, tensor in golden.items()}, folder / "golden.safetensors")
    if name == "groot":
        path = folder / "model.safetensors"
        tensors = {GROOT_PREFIX + key: tensor for key, tensor in load_file(path).items()}
        tensors["action_head.state_encoder.weight"] = torch.ones(2)
        save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    for case in CASES:
        make(Path(sys.argv[1]) / case, case)
