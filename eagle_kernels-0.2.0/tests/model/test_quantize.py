"""Weights of 8 and 4 bits: logits of a trained model stay, the error is stated, and the memory is less."""

import pytest
import torch

from eagle_model.model.config import tiny
from eagle_model.model.eagle import Eagle, build, load
from eagle_model.model.linear import Linear
from eagle_model.model.loss import sqrt_mass
from eagle_model.model.quantize import Quantize
from tests.model.samples import IMAGE_TOKEN_ID, VOCAB_SIZE, document, pack

CFG = tiny(vocab_size=VOCAB_SIZE, image_token_id=IMAGE_TOKEN_ID)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a model that has learned a few documents by heart, their batch, and its logits."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    model = Eagle(CFG)
    batch = pack([document(CFG, 12, 1, 20, seed=seed) for seed in range(4)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    mass = sqrt_mass(batch.labels_T, batch.cu_seqlens)
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(batch, mass)
        loss.backward()
        optimizer.step()
    assert loss < 0.5
    model.save_pretrained(folder)
    with torch.no_grad():
        return folder, batch, model.lm_head(model.hidden(batch))


@pytest.mark.parametrize(("kind", "cosine", "error"), [("int8", 0.9999, 0.01), ("int4", 0.99, 0.12)])
@torch.no_grad()
def test_logits_of_a_trained_model_stay(trained, kind, cosine, error):
    pytest.importorskip("torchao")
    folder, batch, want_TV = trained
    model, quantize = build(CFG), Quantize(kind)
    load(model, folder, convert=quantize)
    found_TV = model.lm_head(model.hidden(batch))
    similar = torch.cosine_similarity(found_TV.flatten(), want_TV.flatten(), dim=0)
    print(f"{quantize}; cosine of the logits {similar:.6f}")
    assert similar > cosine
    assert (found_TV.argmax(1) == want_TV.argmax(1)).float().mean() > 0.95
    assert 0 < quantize.error < error
    assert quantize.num_weights == 4 * CFG.text.num_hidden_layers
    assert str(quantize).startswith(f"12 weights in {kind}; relative error of a product")
    plain = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, Linear) and type(layer.weight.data) is torch.Tensor
    ]
    assert plain
    assert not [name for name in plain if name.startswith("llm.")]  # the vision tower's and the connector's alone


def test_what_is_no_projection_or_has_another_shape_stays():
    pytest.importorskip("torchao")
    quantize = Quantize("int4")
    for name, shape in [("vision.layers.0.mlp.fc1.weight", (64, 64)), ("llm.layers.0.mlp.down_proj.weight", (64, 40))]:
        weight = torch.randn(shape)
        assert quantize(name, weight) is weight
    assert (quantize.num_weights, quantize.num_left) == (0, 1)
    with pytest.raises(ValueError, match="kind is 'int3'; needs one of int8, int4"):
        Quantize("int3")
