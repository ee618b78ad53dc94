"""Visual tokens of tiles: encoded once, loaded ahead, the ones used longest ago forgotten first."""

import pytest
import torch

from eagle_model.data.sample import DataError
from eagle_model.infer.encoded import PIECE_TILES, Encoded
from tests.infer.small import ask, batch_of, model, noise, prompt_of

NUM_IMAGES = PIECE_TILES + 2


@pytest.fixture(scope="module")
def prompt():
    return prompt_of(ask("Where?", *(noise(i, 28, 28) for i in range(NUM_IMAGES))), 4)


@torch.no_grad()
def test_the_vision_towers_tokens_once_each(prompt):
    encoded = Encoded(capacity_tiles=100)
    want_IQD = model().encode_tiles(batch_of(prompt).patches_IPK).unflatten(0, (NUM_IMAGES, -1))
    loader = encoded.loader(prompt, root=b"")
    loader.wait(0)
    assert loader.num_ready(0, 3) == 3
    torch.testing.assert_close(loader.tokens(model(), 0, 3), want_IQD[:3])
    torch.testing.assert_close(loader.tokens(model(), 2, NUM_IMAGES), want_IQD[2:])
    assert encoded.num_encoded == NUM_IMAGES
    again = encoded.loader(prompt, root=b"")
    assert again.num_ready(0, NUM_IMAGES) == NUM_IMAGES
    torch.testing.assert_close(again.tokens(model(), 0, NUM_IMAGES), want_IQD)
    assert encoded.num_encoded == NUM_IMAGES
    assert encoded.loader(prompt, root=b"adapter").num_ready(0, 1) in (0, 1)
    assert not again._pieces
    encoded.close()


@torch.no_grad()
def test_forgets_the_one_used_longest_ago(prompt):
    encoded = Encoded(capacity_tiles=2)
    loader = encoded.loader(prompt, root=b"")
    loader.tokens(model(), 0, 2)
    loader.tokens(model(), 0, 1)
    loader.tokens(model(), 2, 3)  # forgets tile 1
    before = encoded.num_encoded
    loader.tokens(model(), 0, 1)
    assert encoded.num_encoded == before
    loader.tokens(model(), 1, 2)
    assert encoded.num_encoded == before + 1
    encoded.close()


def test_a_file_that_cannot_be_decoded_says_so(tmp_path):
    path = tmp_path / "page.png"
    noise(1).save(path)
    prompt = prompt_of([{"role": "user", "content": [{"type": "image", "image": str(path)}]}], 4)
    path.write_bytes(b"no picture")
    encoded = Encoded(capacity_tiles=2)
    loader = encoded.loader(prompt, root=b"")
    assert isinstance(loader.error(0, 1), DataError)
    with pytest.raises(DataError, match=r"page\.png"):
        loader.tokens(model(), 0, 1)
    encoded.close()
