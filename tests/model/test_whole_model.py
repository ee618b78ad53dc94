"""All of Eagle at once against a composition of transformers' SigLIP and Qwen2 and plain torch, same weights, fp32."""

import torch
from torch import nn

from eagle_model.model.config import tiny
from tests.model import test_llm, test_vision
from tests.model.samples import IMAGE_TOKEN_ID, VOCAB_SIZE, mixed_documents, pack, small_model

CFG = tiny(vocab_size=VOCAB_SIZE, image_token_id=IMAGE_TOKEN_ID)


def test_logits_of_images_and_text_equal_transformers_one_by_one() -> None:
    ours = small_model(CFG)
    siglip, qwen2 = test_vision.theirs_like(ours.vision), test_llm.theirs_like(ours)
    norm = nn.LayerNorm(4 * CFG.vision.hidden_size)
    norm.load_state_dict(ours.connector.norm.state_dict())
    connector = nn.Sequential(norm, ours.connector.up, nn.GELU(), ours.connector.out)
    side, patch_px = CFG.vision.tile_px // CFG.vision.patch_px, CFG.vision.patch_px
    documents = mixed_documents(CFG)
    want = []
    with torch.no_grad():
        for document in documents:
            embeddings = qwen2.get_input_embeddings()(document.token_ids_T)
            if num_tiles := len(document.patches_IPK):
                patches = document.patches_IPK.unflatten(2, (3, patch_px, patch_px)).unflatten(1, (side, side))
                tiles = patches.permute(0, 3, 1, 4, 2, 5).reshape(num_tiles, 3, side * patch_px, side * patch_px)
                features = siglip(tiles).last_hidden_state.unflatten(1, (side // 2, 2, side // 2, 2))
                blocks = features.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)  # 2 x 2 patches, row-major
                embeddings[document.token_ids_T == IMAGE_TOKEN_ID] = connector(blocks).flatten(0, 1)
            want.append(qwen2(inputs_embeds=embeddings[None]).logits[0])
        logits = ours.lm_head(ours.hidden(pack(documents)))
    assert (logits - torch.cat(want)).abs().max() < 1e-4
