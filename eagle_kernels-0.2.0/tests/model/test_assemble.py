"""A new Eagle of transformers' SigLIP and language models: every tensor where it belongs, and the rows that change."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.bench_checkpoint import peak_of
from eagle_model.model import weights
from eagle_model.model.assemble import assemble
from eagle_model.model.config import EagleConfig, TextConfig, VisionConfig
from eagle_model.model.eagle import Eagle, build
from eagle_model.model.vision import resize_position_table
from tests.model.samples import randomise
from tests.model.test_released_folders import files

transformers = pytest.importorskip("transformers")
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 35,  # 5 x 5 patches: what a connector of 2 x 2 blocks could not take
    "patch_size": 7,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
}
NEW = {"vocab_size": 37, "num_new_tokens": 3, "image_token_id": 36, "tile_px": 28}
LLMS = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}


def saved(model, folder: Path) -> Path:
    torch.manual_seed(len(str(type(model))))
    randomise(model)
    model.bfloat16().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def siglip(tmp_path_factory) -> Path:
    """All of a SigLIP, as google/siglip2-so400m-patch14-384 is."""
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.SiglipConfig(vision_config=VISION, text_config={**text, "vocab_size": 10})
    return saved(transformers.SiglipModel(config), tmp_path_factory.mktemp("siglip"))


def llm(folder: Path, kind: str = "qwen2", **changes: object) -> Path:
    config = getattr(transformers, f"{LLMS[kind]}Config")(**{**TEXT, **changes})
    return saved(getattr(transformers, f"{LLMS[kind]}ForCausalLM")(config), folder)


def without(tensors: dict[str, Tensor], *keys: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if key not in keys}


@pytest.mark.parametrize("kind", LLMS)
def test_every_tensor_of_both_towers_is_taken_bit_by_bit(tmp_path, siglip, kind):
    llm_folder = llm(tmp_path / "llm", kind)
    assemble(siglip, llm_folder, tmp_path / "out", **NEW, max_shard_bytes=20_000)
    got, theirs, text = (
        files(tmp_path / "out"),
        load_file(siglip / weights.SINGLE),
        load_file(llm_folder / weights.SINGLE),
    )
    want = {key.replace("vision_model.", "vision_model.vision_model.", 1): tensor for key, tensor in theirs.items()}
    want = {key: tensor for key, tensor in want.items() if key.startswith("vision_model.")}
    want |= {f"language_model.{key}": tensor for key, tensor in text.items()}
    resized = ("vision_model.vision_model.embeddings.position_embedding.weight",)
    resized += ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
    assert without(got, *resized).keys() - without(want, *resized).keys() == {
        f"mlp1.{i}.{name}" for i in (0, 1, 3) for name in ("weight", "bias")
    }
    assert sum(key.startswith(weights.POOLING_HEAD) for key in got) == 11
    for key, tensor in without(want, *resized).items():
        assert torch.equal(got[key], tensor), key
    assert torch.equal(got[resized[0]], resize_position_table(want[resized[0]], 16))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    model = Eagle.from_pretrained(tmp_path / "out")
    assert (model.cfg.text.model_type, model.cfg.vision.tile_px, model.cfg.image_token_id) == (kind, 28, 36)
    assert json.loads((tmp_path / "out/config.json").read_text())["vision_config"]["vision_use_head"] is True


def test_a_tower_alone_is_the_same(tmp_path, siglip):
    """Of transformers 5 without any prefix, of transformers 4 with the whole model's."""
    llm_folder = llm(tmp_path / "llm")
    tower = {
        key.removeprefix("vision_model."): tensor
        for key, tensor in load_file(siglip / weights.SINGLE).items()
        if key.startswith("vision_model.")
    }
    alone = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION)).bfloat16()
    alone.load_state_dict(tower)
    alone.save_pretrained(tmp_path / "five")
    (tmp_path / "four").mkdir()
    (tmp_path / "four" / "config.json").write_bytes((tmp_path / "five" / "config.json").read_bytes())
    save_file({f"vision_model.{key}": tensor for key, tensor in tower.items()}, tmp_path / "four" / weights.SINGLE)
    for name, folder in (("all", siglip), ("5", tmp_path / "five"), ("4", tmp_path / "four")):
        torch.manual_seed(0)
        assemble(folder, llm_folder, tmp_path / "out" / name, **NEW)
    want = (tmp_path / "out/all" / weights.SINGLE).read_bytes()
    assert (tmp_path / "out/5" / weights.SINGLE).read_bytes() == want
    assert (tmp_path / "out/4" / weights.SINGLE).read_bytes() == want


def test_rows_of_new_tokens(tmp_path, siglip):
    """40 rows, of which the tokenizer had 34: padded rows go, three new tokens take padded rows and the mean."""
    llm_folder = llm(tmp_path / "llm")
    assemble(siglip, llm_folder, tmp_path / "out", **NEW)
    got, old = files(tmp_path / "out"), load_file(llm_folder / weights.SINGLE)
    embeddings, head = got["language_model.model.embed_tokens.weight"], got["language_model.lm_head.weight"]
    assert torch.equal(embeddings, old["model.embed_tokens.weight"][:37])
    assert torch.equal(head[:34], old["lm_head.weight"][:34])
    mean = old["lm_head.weight"][:34].float().mean(0).bfloat16()
    assert torch.equal(head[34:], mean.expand(3, -1))


def test_rows_that_no_padding_has_are_drawn(tmp_path, siglip):
    llm_folder = llm(tmp_path / "llm")
    new = NEW | {"vocab_size": 40 + 1000, "num_new_tokens": 1000}
    for name in ("a", "b"):
        torch.manual_seed(1)
        assemble(siglip, llm_folder, tmp_path / name, **new)
    embeddings, old = (files(path) for path in (tmp_path / "a", llm_folder))
    rows = embeddings["language_model.model.embed_tokens.weight"]
    assert torch.equal(rows[:40], old["model.embed_tokens.weight"])
    assert 0.019 < rows[40:].float().std() < 0.021
    assert (tmp_path / "a" / weights.SINGLE).read_bytes() == (tmp_path / "b" / weights.SINGLE).read_bytes()


def test_a_tied_table_takes_the_mean(tmp_path, siglip):
    llm_folder = llm(tmp_path / "llm", tie_word_embeddings=True)
    assemble(siglip, llm_folder, tmp_path / "out", **NEW)
    got, old = files(tmp_path / "out"), load_file(llm_folder / weights.SINGLE)["model.embed_tokens.weight"]
    assert "language_model.lm_head.weight" not in got
    rows = got["language_model.model.embed_tokens.weight"]
    assert torch.equal(rows[:34], old[:34])
    assert torch.equal(rows[34:], old[:34].float().mean(0).bfloat16().expand(3, -1))
    model = Eagle.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is model.llm.embed_tokens.weight


def test_a_tokenizer_without_new_tokens_changes_no_row(tmp_path, siglip):
    llm_folder = llm(tmp_path / "llm")
    assemble(
        siglip, llm_folder, tmp_path / "out", **NEW | {"num_new_tokens": 0, "tile_px": None}, use_pixel_shuffle=False
    )
    got, old = files(tmp_path / "out"), load_file(llm_folder / weights.SINGLE)
    assert torch.equal(got["language_model.lm_head.weight"], old["lm_head.weight"][:37])
    positions = "vision_model.embeddings.position_embedding.weight"
    assert torch.equal(got[f"vision_model.{positions}"], load_file(siglip / weights.SINGLE)[positions])


def test_what_does_not_fit_is_named(tmp_path, siglip):
    llm_folder, out = llm(tmp_path / "llm"), tmp_path / "out"
    with pytest.raises(
        ValueError, match=r"vocab_size is 44 with 3 new tokens; the language model in \S+ has rows for 40"
    ):
        assemble(siglip, llm_folder, out, **NEW | {"vocab_size": 44})
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing; needs the folder of a model"):
        assemble(siglip, tmp_path, out, **NEW)
    tensors = load_file(llm_folder / weights.SINGLE)
    del tensors["model.norm.weight"]
    tensors["model.other"] = torch.zeros(2)
    save_file(tensors, llm_folder / weights.SINGLE)
    with pytest.raises(ValueError, match=r"\(2 tensors\):\n  missing: language_model\.model\.norm\.weight\n  unknown"):
        assemble(siglip, llm_folder, out, **NEW)
    assert not out.exists()


def test_it_takes_one_shard_of_memory(tmp_path):
    """Cast from fp32 as they are written, the tensors of one shard are held at a time."""
    shard_bytes = 5_000_000
    vision = transformers.SiglipVisionConfig(**VISION | {"image_size": 28})
    text = transformers.Qwen2Config(**TEXT | {"hidden_size": 512, "intermediate_size": 2048})
    towers = VisionConfig.from_dict(vision.to_dict()), TextConfig.from_dict(text.to_dict())
    cfg = EagleConfig(vision=towers[0], text=towers[1], image_token_id=0)
    tensors = weights.released(dict(build(cfg).named_parameters()), weights.rules(cfg))
    for config, prefix in ((vision, "vision_model."), (text, "language_model.")):
        config.save_pretrained(tmp_path / prefix)
        zeros = {
            key.removeprefix(prefix): torch.zeros(at.shape) for key, at in tensors.items() if key.startswith(prefix)
        }
        save_file(zeros, tmp_path / prefix / weights.SINGLE)
    del zeros
    folders = tmp_path / "vision_model.", tmp_path / "language_model.", tmp_path / "out"
    peak_bytes = peak_of(lambda: assemble(*folders, **NEW, max_shard_bytes=shard_bytes))
    assert sum(path.stat().st_size for path in folders[2].glob("*.safetensors")) > 2.4 * shard_bytes
    assert peak_bytes < 1.6 * shard_bytes
