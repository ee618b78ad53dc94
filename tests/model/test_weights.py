"""Weights as files: released names, bit-equal round trips, shards, and every way a file can be wrong."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eagle_model.model import weights
from eagle_model.model.config import tiny
from eagle_model.model.eagle import Eagle
from tests.model.samples import IMAGE_TOKEN_ID, VOCAB_SIZE, mixed_documents, pack, small_model, with_text

CFG = tiny(vocab_size=VOCAB_SIZE, image_token_id=IMAGE_TOKEN_ID)


def released_keys() -> set[str]:
    """The names of nvidia/Eagle2.5-8B, for CFG's numbers of layers."""
    vision, text = "vision_model.vision_model.", "language_model.model."
    keys = {f"{vision}embeddings.patch_embedding.{k}" for k in ("weight", "bias")}
    keys |= {f"{vision}embeddings.position_embedding.weight", "language_model.lm_head.weight"}
    keys |= {f"{vision}post_layernorm.weight", f"{vision}post_layernorm.bias"}
    keys |= {f"mlp1.{i}.{k}" for i in (0, 1, 3) for k in ("weight", "bias")}
    keys |= {f"{text}embed_tokens.weight", f"{text}norm.weight"}
    for i in range(CFG.vision.num_hidden_layers):
        names = ["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"]
        names += [f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")]
        keys |= {f"{vision}encoder.layers.{i}.{name}.{k}" for name in names for k in ("weight", "bias")}
    for i in range(CFG.text.num_hidden_layers):
        names = ["input_layernorm", "post_attention_layernorm", "self_attn.o_proj"]
        names += [f"mlp.{p}_proj" for p in ("gate", "up", "down")] + [f"self_attn.{p}_proj" for p in "qkv"]
        keys |= {f"{text}layers.{i}.{name}.weight" for name in names}
        keys |= {f"{text}layers.{i}.self_attn.{p}_proj.bias" for p in "qkv"}
    return keys


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    small_model(CFG).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, change) -> None:
    """Lets `change` edit the tensors of a saved model in place."""
    tensors = load_file(folder / weights.SINGLE)
    change(tensors)
    save_file(tensors, folder / weights.SINGLE)


def assert_same(a: Eagle, b: Eagle) -> None:
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_bit_equal(tmp_path, dtype):
    model = small_model(CFG).to(dtype)
    model.save_pretrained(tmp_path)
    again = Eagle.from_pretrained(tmp_path)
    assert_same(model, again)
    assert all(p.requires_grad and not p.is_meta for p in again.parameters())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == str(dtype).removeprefix("torch.")
    row = pack(mixed_documents(CFG))
    with torch.no_grad():
        assert torch.equal(model(row), again(row))


def test_names_and_shapes_are_the_released_ones(saved):
    tensors = load_file(saved / "model.safetensors")
    assert tensors.keys() == released_keys()
    patch_embedding = tensors["vision_model.vision_model.embeddings.patch_embedding.weight"]
    assert patch_embedding.shape == (64, 3, 7, 7)
    assert torch.equal(patch_embedding.flatten(1), small_model(CFG).vision.patch_embedding.weight)


def test_dtype_on_load(saved):
    half = Eagle.from_pretrained(saved, dtype=torch.bfloat16)
    assert_same(half, small_model(CFG).bfloat16())


def test_shards(tmp_path):
    model = small_model(CFG)
    limit_bytes = 400_000
    model.save_pretrained(tmp_path, max_shard_bytes=limit_bytes)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == released_keys()
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in model.parameters())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3
    assert files == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    assert not (tmp_path / "model.safetensors").exists()
    for name in files:
        tensors = load_file(tmp_path / name)
        assert sum(t.numel() * 4 for t in tensors.values()) <= limit_bytes
        assert {key for key, file in index["weight_map"].items() if file == name} == tensors.keys()
    assert_same(model, Eagle.from_pretrained(tmp_path))

    (tmp_path / files[1]).unlink()
    with pytest.raises(FileNotFoundError, match=f"names {files[1]}, which"):
        Eagle.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"weight_map": 3}', "is damaged"),
        ('{"weight_map": {"a": 3}}', "is damaged"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "shards must lie in the same folder"),
    ],
)
def test_bad_index(saved, text, message):
    (saved / weights.INDEX).write_text(text)
    with pytest.raises(ValueError, match=message):
        Eagle.from_pretrained(saved)


def test_tied_embeddings_are_stored_once(tmp_path):
    model = small_model(with_text(CFG, tie_word_embeddings=True))
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / weights.SINGLE).keys() == released_keys() - {"language_model.lm_head.weight"}
    again = Eagle.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.llm.embed_tokens.weight
    assert_same(model, again)

    def add_head(tensors, scale):
        tensors["language_model.lm_head.weight"] = scale * tensors["language_model.model.embed_tokens.weight"]

    rewrite(tmp_path, lambda tensors: add_head(tensors, 1))
    assert_same(model, Eagle.from_pretrained(tmp_path))
    rewrite(tmp_path, lambda tensors: add_head(tensors, 2))
    with pytest.raises(ValueError, match=r"says tie_word_embeddings, but language_model\.lm_head\.weight and"):
        Eagle.from_pretrained(tmp_path)


def test_pooling_head_is_skipped(saved):
    rewrite(saved, lambda tensors: tensors.update({"vision_model.vision_model.head.probe": torch.zeros(1, 1, 64)}))
    assert_same(Eagle.from_pretrained(saved), small_model(CFG))


@pytest.mark.parametrize("prefix", ["backbone.eagle_model.", "backbone.model."])
def test_groot_prefix(saved, prefix):
    tensors = load_file(saved / weights.SINGLE)
    tensors = {prefix + key: tensor for key, tensor in tensors.items()}
    tensors["action_head.state_encoder.weight"] = torch.zeros(2)
    save_file(tensors, saved / weights.SINGLE)
    assert_same(Eagle.from_pretrained(saved), small_model(CFG))


def test_every_wrong_tensor_is_named(saved):
    def change(tensors):
        del tensors["mlp1.1.bias"], tensors["language_model.model.norm.weight"]
        tensors["mlp1.2.weight"] = torch.zeros(1)
        tensors["vision_model.vision_model.encoder.layers.7.mlp.fc1.bias"] = torch.zeros(1)
        tensors["mlp1.3.bias"] = torch.zeros(5)
        tensors["vision_model.vision_model.embeddings.patch_embedding.weight"] = torch.zeros(64, 147)

    rewrite(saved, change)
    with pytest.raises(ValueError, match=r"do not fit the model of its config.json \(6 tensors\)") as raised:
        Eagle.from_pretrained(saved)
    assert sorted(str(raised.value).splitlines()[1:]) == [
        "  missing: language_model.model.norm.weight",
        "  missing: mlp1.1.bias",
        "  shape: mlp1.3.bias is (5,), needs (128,)",
        "  shape: vision_model.vision_model.embeddings.patch_embedding.weight is (64, 147), needs (64, 3, 7, 7)",
        "  unknown: mlp1.2.weight",
        "  unknown: vision_model.vision_model.encoder.layers.7.mlp.fc1.bias",
    ]


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_truncated_file(saved, keep):
    path = saved / weights.SINGLE
    size_bytes = path.stat().st_size
    os.truncate(path, keep if isinstance(keep, int) else int(keep * size_bytes))
    with pytest.raises(ValueError, match=r"model\.safetensors \(\d+ bytes\) is damaged or cut short"):
        Eagle.from_pretrained(saved)


def test_garbage_is_no_pickle(saved):
    (saved / weights.SINGLE).write_bytes(b"\x80\x04cos\nsystem\n" + b"x" * 100)
    with pytest.raises(ValueError, match="is damaged or cut short"):
        Eagle.from_pretrained(saved)


def test_missing_files(tmp_path, saved):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        Eagle.from_pretrained(tmp_path / "nowhere")
    (saved / weights.SINGLE).unlink()
    with pytest.raises(FileNotFoundError, match=r"holds neither model\.safetensors nor model\.safetensors\."):
        Eagle.from_pretrained(saved)


def test_saving_over_weights_is_refused(saved):
    before = (saved / weights.SINGLE).read_bytes()
    with pytest.raises(FileExistsError, match=r"already holds model\.safetensors; save to an empty folder"):
        small_model(CFG, seed=1).save_pretrained(saved)
    assert (saved / weights.SINGLE).read_bytes() == before


def test_files_have_the_permissions_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        small_model(CFG).save_pretrained(tmp_path)
    finally:
        os.umask(before)
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()}
    assert modes == {"config.json": "0o640", "model.safetensors": "0o640"}


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch):
    def no_space(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        small_model(CFG).save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_loaded_weights_do_not_depend_on_the_file(saved):
    model = Eagle.from_pretrained(saved)
    path = saved / weights.SINGLE
    path.write_bytes(b"\0" * path.stat().st_size)
    assert_same(model, small_model(CFG))


def test_unknown_parameter_name():
    with pytest.raises(ValueError, match=r"adapter\.weight is no parameter of Eagle"):
        weights.released_name("adapter.weight")
