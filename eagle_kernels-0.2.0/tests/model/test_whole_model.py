"""All of Eagle at once against a composition of transformers' SigLIP and language models and plain torch, same weights,
fp32."""

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from eagle_model.model import weights
from eagle_model.model.config import tiny
from eagle_model.model.eagle import Eagle
from tests.model import test_connector, test_llm, test_vision
from tests.model.samples import IMAGE_TOKEN_ID, VOCAB_SIZE, mixed_documents, pack, small_model, with_text

CFG = tiny(vocab_size=VOCAB_SIZE, image_token_id=IMAGE_TOKEN_ID)
MODELS = {
    "Eagle 2.5": CFG,
    "Isaac GR00T N1.5": with_text(
        replace(CFG, mlp_connector_layers=1, use_pixel_shuffle=False), model_type="qwen3", head_dim=16
    ),
    "Llama, one layer, an inner layer of SigLIP": with_text(
        replace(CFG, mlp_connector_layers=1, select_layer=-2), model_type="llama"
    ),
    "YaRN, patches of two layers": with_text(
        replace(CFG, use_pixel_shuffle=False), rope_scaling=test_llm.SCALINGS["yarn"], max_position_embeddings=32
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_of_images_and_text_equal_transformers_one_by_one(name):
    cfg = MODELS[name]
    ours = small_model(cfg)
    siglip, llm = test_vision.theirs_like(ours.vision), test_llm.theirs_like(ours)
    connector = test_connector.theirs_like(ours.connector, cfg)
    side, patch_px = cfg.vision.tile_px // cfg.vision.patch_px, cfg.vision.patch_px
    documents = mixed_documents(cfg)
    row = pack(documents)
    want = []
    for document in documents:
        embeddings = llm.get_input_embeddings()(document.token_ids_T)
        if num_tiles := len(document.patches_IPK):
            patches = document.patches_IPK.unflatten(2, (3, patch_px, patch_px)).unflatten(1, (side, side))
            tiles = patches.permute(0, 3, 1, 4, 2, 5).reshape(num_tiles, 3, side * patch_px, side * patch_px)
            seen = siglip(tiles, output_hidden_states=True)
            features = seen.last_hidden_state if cfg.select_layer == -1 else seen.hidden_states[cfg.select_layer]
            visual = connector(
                test_connector.pixel_shuffle(features.contiguous()) if cfg.use_pixel_shuffle else features
            )
            embeddings = embeddings.clone()
            embeddings[document.token_ids_T == IMAGE_TOKEN_ID] = visual.flatten(0, 1)
        want.append(llm(inputs_embeds=embeddings[None]).logits[0])
    logits = ours.lm_head(ours.hidden(row))
    assert (logits - torch.cat(want)).abs().max() < 1e-4
    for logits_TV in (logits, torch.cat(want)):
        torch.nn.functional.cross_entropy(logits_TV, row.labels_T, reduction="sum").backward()
    unused = {f"vision.layers.{i}." for i in range(ours.vision.num_layers_run, cfg.vision.num_hidden_layers)}
    unused |= set() if ours.vision.takes_norm else {"vision.post_layernorm."}
    grads = {n: p.grad for n, p in ours.named_parameters() if not n.startswith(tuple(unused))}
    grads = weights.released(grads, weights.rules(cfg))
    theirs = {f"mlp1.{key}": p.grad for key, p in connector.named_parameters()}
    theirs |= {f"vision_model.vision_model.{key}": p.grad for key, p in siglip.named_parameters() if p.grad is not None}
    theirs |= {f"language_model.{key}": p.grad for key, p in llm.named_parameters()}
    assert grads.keys() == theirs.keys()
    for key, grad in theirs.items():
        error = (grads[key] - grad).abs().max()
        assert error <= 1e-4 * (1 + grad.abs().max()), (key, error)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "Eagle 2.5"])
def test_other_models_come_back_bit_by_bit(name, tmp_path):
    ours = small_model(MODELS[name]).bfloat16()
    ours.save_pretrained(tmp_path)
    again = Eagle.from_pretrained(tmp_path)
    assert again.cfg.text == replace(ours.cfg.text, other=again.cfg.text.other)
    for (name, a), b in zip(ours.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name
    keys = safe_open(tmp_path / weights.SINGLE, framework="pt").keys()
    wanted = test_llm.theirs_like(ours).state_dict().keys()
    assert {key.removeprefix("language_model.") for key in keys if key.startswith("language_model.")} == wanted
    assert not [key for key in keys if "qkv_proj" in key or "gate_up" in key]
