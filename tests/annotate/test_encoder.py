"""annotate/encoder.py: a CLIP and a SigLIP folder, as transformers saves them, against Pillow and the model itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eagle_model.annotate.encoder import Encoder

MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


def save(folder: Path, kind: str) -> Path:
    """A tiny model of this kind, with random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision, text = (
        {**tower, "image_size": 32, "patch_size": 16},
        {**tower, "vocab_size": 20, "max_position_embeddings": 8},
    )
    if kind == "clip":
        config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)
        model = transformers.CLIPModel(config)
        size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    else:
        model = transformers.SiglipModel(transformers.SiglipConfig(vision_config=vision, text_config=text))
        size = {"size": {"height": 32, "width": 32}}
    model.save_pretrained(folder)
    about = {**size, "image_mean": MEAN, "image_std": STD, "resample": 3, "do_rescale": True, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_features_are_those_of_the_model(tmp_path: Path, kind: str) -> None:
    encoder = Encoder(save(tmp_path, kind))
    assert encoder.is_clip == (kind == "clip")
    frames = torch.randint(0, 256, (2, 40, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = encoder(frames)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    pixels = []
    for frame in frames:  # as Pillow prepares it
        image = Image.fromarray(frame.numpy())
        image = image.resize((48, 32) if kind == "clip" else (32, 32), Image.Resampling.BICUBIC)
        image = image.crop((8, 0, 40, 32)) if kind == "clip" else image
        pixels.append((torch.tensor(np.array(image)) / 255 - torch.tensor(MEAN)) / torch.tensor(STD))
    with torch.inference_mode():
        features = encoder.model.get_image_features(pixel_values=torch.stack(pixels).permute(0, 3, 1, 2).float())
    features = features if isinstance(features, torch.Tensor) else features.pooler_output
    true = torch.nn.functional.normalize(features, dim=-1).numpy()
    assert (found * true).sum(1).min() > 0.999


def test_a_folder_that_does_not_say_how_images_are_prepared(tmp_path: Path) -> None:
    save(tmp_path, "clip")
    (tmp_path / "preprocessor_config.json").write_text('{"size": 32}')
    with pytest.raises(ValueError, match="needs size, image_mean, image_std"):
        Encoder(tmp_path)
