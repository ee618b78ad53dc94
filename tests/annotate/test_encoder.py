"""annotate/encoder.py: a CLIP and a SigLIP folder, as transformers saves them, against transformers' own processors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eagle_model.annotate.config import AnnotateConfig
from eagle_model.annotate.encoder import Encoder
from eagle_model.annotate.work import read_part
from eagle_model.data.clips import open_video
from tests.annotate.conftest import films
from tests.test_cli import run as run_command

pytest.importorskip("transformers")


def save(folder: Path, kind: str, **how: Any) -> Any:
    """A tiny model of this kind, with random weights, as transformers saves it; returns its processor of images."""
    import transformers

    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**tower, "image_size": 32, "patch_size": 16}
    text = {**tower, "vocab_size": 20, "max_position_embeddings": 8}
    if kind == "clip":
        config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)
        model = transformers.CLIPModel(config)
        size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        processor = transformers.CLIPImageProcessorPil(**size, **how)
    else:
        model = transformers.SiglipModel(transformers.SiglipConfig(vision_config=vision, text_config=text))
        processor = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32}, **how)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return processor


def features_of(model: torch.nn.Module, processor: Any, frames_NYX3: torch.Tensor) -> np.ndarray:
    """(N, D) of length 1, by transformers alone."""
    pixels = processor(images=[frame.numpy() for frame in frames_NYX3], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        features = model.get_image_features(pixel_values=pixels)  # type: ignore[operator]
    features = features if isinstance(features, torch.Tensor) else features.pooler_output
    return torch.nn.functional.normalize(features, dim=-1).numpy()


def some_frames() -> torch.Tensor:
    return torch.randint(0, 256, (2, 40, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_features_are_those_of_the_model(tmp_path: Path, kind: str, resample: int) -> None:
    processor = save(tmp_path, kind, resample=resample)
    encoder = Encoder(tmp_path)
    assert encoder.is_clip == (kind == "clip")
    found = encoder(some_frames())
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    assert (found * features_of(encoder.model, processor, some_frames())).sum(1).min() > 0.9999


def test_a_processor_that_was_saved_whole(tmp_path: Path) -> None:
    """Transformers 5 writes a CLIPProcessor's images and texts into one file, and no preprocessor_config.json."""
    import transformers

    images = save(tmp_path, "clip")
    before = Encoder(tmp_path)(some_frames())
    (tmp_path / "preprocessor_config.json").unlink()
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "a</w>": 3}
    tokenizer = transformers.CLIPTokenizer(vocab=words, merges=[])
    transformers.CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    np.testing.assert_array_equal(Encoder(tmp_path)(some_frames()), before)


def test_a_folder_that_does_not_say_how_images_are_prepared(tmp_path: Path) -> None:
    save(tmp_path, "clip")
    (tmp_path / "preprocessor_config.json").write_text('{"size": 32}')
    with pytest.raises(ValueError, match="needs size, image_mean, image_std"):
        Encoder(tmp_path)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_models_that_transformers_saved_select_as_brute_force_does(
    tmp_path: Path,
    make_config: Callable[..., AnnotateConfig],
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command, over real film, with a model of random weights."""
    folder = films(tmp_path / "films")
    processor = save(tmp_path / "model", kind)
    make_config("http://none/v1")

    def command(*settings: str) -> int:
        given = ["select.encoder=model", "select.clip_seconds=2.0", "select.duplicate_threshold=2.0", *settings]
        sets = [part for setting in given for part in ("--set", setting)]
        return run_command(monkeypatch, "annotate", "select", "--config", tmp_path / "run.toml", *sets)

    assert command("out=old") == 0
    features = np.load(tmp_path / "old/select/features/part-00000.npy").astype(np.float32)
    opened = open_video(folder / "bikes.mp4")
    frames = torch.stack([f.rgb_YX3 for f in opened.frames(opened.choose(np.arange(0.5, 10), seek="tolerance"))])
    by_hand = features_of(Encoder(tmp_path / "model").model, processor, frames)
    pairs = by_hand.reshape(5, 2, -1).mean(1)
    pairs /= np.linalg.norm(pairs, axis=1, keepdims=True)
    assert (features[3:8] * pairs).sum(1).min() > 0.999

    (tmp_path / "known").mkdir()
    np.save(tmp_path / "known/bunny.npy", features[:3].astype(np.float16))
    cosines = (features @ features[:3].T).max(1)
    ordered = np.sort(cosines)
    assert ordered[4] - ordered[3] > 1e-5
    threshold = float(ordered[3:5].mean())
    capsys.readouterr()
    if kind == "clip":
        assert command("out=new", "select.reference=known") == 0
        assert "threshold" in capsys.readouterr().err  # 0.5: in the histogram
    else:
        assert command("out=new", "select.reference=known") == 2
        said = capsys.readouterr().err
        assert "kept" in said and "Choose by the histogram above" in said
    assert command("out=new", "select.reference=known", f"select.threshold={threshold}") == 0
    rows = read_part(tmp_path / "new/select", 0).to_pylist()
    starts = {row["id"]: row["new_clips"] for row in rows}
    expected, at = {}, 0
    for name, num_clips in (("bigbuckbunny.mp4", 3), ("bikes.mp4", 5), ("carphone_pristine.mp4", 2)):
        new = [2.0 * i for i in range(num_clips) if cosines[at + i] < threshold]
        expected |= {name: new} if new else {}
        at += num_clips
    assert at == len(cosines) and starts == expected and sum(map(len, starts.values())) == 4
