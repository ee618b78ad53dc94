"""Whole folders, there and back: released folder, checkpoint of a run, layouts, adapters, and a fresh start."""

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from eagle_model import cli, convert
from eagle_model.checkpoints import verify
from eagle_model.data.processor import Processor
from eagle_model.fields import ConfigError
from eagle_model.model import lora, weights
from eagle_model.model.eagle import Eagle
from eagle_model.train import checkpoint
from eagle_model.train.recipes import tiny
from eagle_model.train.start import new_model
from eagle_model.train.trainer import Trainer
from tests.infer.test_assistant import save_model
from tests.model import test_assemble
from tests.model.samples import randomise
from tests.model.test_released_folders import assert_same_tensors, files

HEAD = {f"{weights.POOLING_HEAD}probe": torch.ones(1, 1, 64)}


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A whole folder with more than we would write."""
    folder = tmp_path / "released"
    save_model(folder)
    tensors = load_file(folder / weights.SINGLE) | HEAD
    (folder / weights.SINGLE).unlink()
    weights.write_shards(folder, {key: at.nbytes for key, at in tensors.items()}, tensors.__getitem__, 1_000_000)
    fields = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoConfig": "x.Y"}}
    (folder / "config.json").write_text(json.dumps(fields))
    for name in ("LICENSE", "modeling_eagle2_5_vl.py"):
        (folder / name).write_text(f"# {name}")
    end = Processor.from_pretrained(folder).encoder.turn_end_id
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end, "temperature": 0.7}))
    (folder / ".gitattributes").write_text("hidden")
    (folder / "figures").mkdir()
    return folder


def test_a_released_folder_becomes_a_checkpoint_and_comes_back(tmp_path, released):
    step = convert.to_run(released, tmp_path / "run")
    assert step == tmp_path / "run" / "checkpoints" / "step-000000"
    assert verify(step).step == 0
    assert Processor.from_pretrained(tmp_path / "run").config == Processor.from_pretrained(released).config
    convert.to_folder(tmp_path / "run", tmp_path / "back")
    for folder in (step, tmp_path / "back"):
        assert_same_tensors(files(folder), files(released))
        for name in ("LICENSE", "modeling_eagle2_5_vl.py", "tokenizer.json"):
            assert (folder / name).read_bytes() == (released / name).read_bytes(), name
        told = [json.loads((at / "generation_config.json").read_text()) for at in (folder, released)]
        assert told[0] == told[1]
    names = {path.name for path in (tmp_path / "back").iterdir()}
    assert not names & {"manifest.json", ".gitattributes", "figures", "training"}
    before, after = (json.loads((path / "config.json").read_text()) for path in (released, tmp_path / "back"))
    after["vision_config"].pop("vision_use_head"), before["vision_config"].pop("vision_use_head")
    assert after == before


def test_the_newest_checkpoint_is_taken_and_its_training_left(tmp_path):
    for step in (1, 2):

        def write(partial: Path, step: int = step) -> None:
            save_model(partial, seed=step)
            (partial / "training").mkdir()
            (partial / "training" / "state.json").write_text("{}")

        checkpoint.save(tmp_path / "run" / "checkpoints", step, "run", write)
    convert.to_folder(tmp_path / "run", tmp_path / "out", layout="groot", dtype=torch.bfloat16)
    model, want = Eagle.from_pretrained(tmp_path / "out"), Eagle.from_pretrained(tmp_path / "run", dtype=torch.bfloat16)
    assert all(map(torch.equal, model.parameters(), want.parameters()))
    assert all(key.startswith("backbone.eagle_model.") for key in files(tmp_path / "out"))
    assert not (tmp_path / "out" / "training").exists()


def test_training_starts_from_a_converted_folder_and_does_not_resume_it(tmp_path, released):
    convert.to_run(released, tmp_path / "run")
    base = tiny()
    config = replace(base, model=str(tmp_path / "run"), data=replace(base.data, recipe="chats.jsonl"))
    model, _ = new_model(config)
    assert all(map(torch.equal, model.parameters(), Eagle.from_pretrained(released).parameters()))
    assert_same_tensors(model.carried, HEAD)
    with pytest.raises(ConfigError, match=r"no state of training, as eagle convert makes it: nothing to resume\. Give"):
        Trainer(config, tmp_path / "run", say=lambda text: None)


def test_an_adapter_is_merged_into_the_weights(tmp_path, released):
    model = Eagle.from_pretrained(released)
    lora.add_lora(model, lora.LoraConfig(rank=2, alpha=4))
    randomise(model, std=0.02)
    lora.save_adapter(model, tmp_path / "adapter")
    convert.to_folder(released, tmp_path / "out", adapter=tmp_path / "adapter")
    plain, merged = Eagle.from_pretrained(released), Eagle.from_pretrained(tmp_path / "out")
    lora.load_adapter(plain, tmp_path / "adapter")
    row = Processor.from_pretrained(released)([{"role": "user", "content": "Where?"}])
    with torch.no_grad():
        assert (merged.hidden(row) - plain.hidden(row)).abs().max() < 1e-5
        assert (merged.hidden(row) - Eagle.from_pretrained(released).hidden(row)).abs().max() > 1e-2
    assert_same_tensors(merged.carried, HEAD)


def test_a_folder_without_a_tokenizer_needs_another(tmp_path, released):
    bare = tmp_path / "bare"
    Eagle.from_pretrained(released).save_pretrained(bare)
    with pytest.raises(ValueError, match=r"tokenizer\.json does not exist"):
        convert.to_folder(bare, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    convert.to_folder(bare, tmp_path / "out", processor=released)
    assert_same_tensors(files(tmp_path / "out"), files(released))
    assert (tmp_path / "out" / "LICENSE").exists()


def test_nothing_is_written_over(tmp_path, released):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    for write in (convert.to_folder, convert.to_run):
        with pytest.raises(FileExistsError, match="is no empty folder; nothing is written over"):
            write(released, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_the_command_line_converts(monkeypatch, capsys, tmp_path, released):
    def eagle(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["eagle", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code or 0

    assert eagle("convert", released, tmp_path / "run", "--run") == 0
    assert "run/checkpoints/step-000000" in capsys.readouterr().out
    assert eagle("convert", tmp_path / "run", tmp_path / "out", "--dtype", "bfloat16", "--layout", "lerobot") == 0
    assert {tensor.dtype for key, tensor in files(tmp_path / "out").items() if "head.probe" not in key} == {
        torch.bfloat16
    }
    assert eagle("convert", released, tmp_path / "x", "--dtype", "int8") == 2
    assert "--dtype is int8; needs one of float32, bfloat16, float16" in capsys.readouterr().err
    assert eagle("convert", released, tmp_path / "x", "--run", "--layout", "groot") == 2
    assert not (tmp_path / "x").exists()


# ---- a fresh start

TEXTS = ["What is in the picture? A cat and a dog.", "assistant", "assistant"]


def llm_tokenizer(*, tokens: tuple[str, ...] = (), vocab_size: int = 280) -> Tokenizer:
    """A language model's: bytes, ChatML's tokens, and what else it may have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    added = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *tokens)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    return tokenizer


@pytest.mark.parametrize("order", convert.TOKEN_ORDERS)
def test_token_ids_in_both_orders(order):
    """As in nvidia/Eagle2.5-8B, and as the public training code adds them to Qwen3."""
    tokenizer = llm_tokenizer()
    first = convert.vocab_size(tokenizer)
    convert.add_tokens(tokenizer, order)
    names = {
        "released": "<img> </img> <IMG_CONTEXT> <quad> </quad> <ref> </ref> <box> </box>",
        "training": "<IMG_CONTEXT> <img> </img> <box> </box> <quad> </quad> <ref> </ref> <interval> </interval>",
    }[order].split()
    assert [tokenizer.token_to_id(name) for name in names] == list(range(first, first + len(names)))
    again = Tokenizer.from_str(tokenizer.to_str())
    convert.add_tokens(again, "training" if order == "released" else "released")
    assert [again.token_to_id(name) for name in names] == list(range(first, first + len(names)))  # its own ids win


def test_assistant_becomes_one_token():
    tokenizer = llm_tokenizer(vocab_size=256)
    assert len(tokenizer.encode("assistant").ids) > 1
    convert.add_tokens(tokenizer, "released")
    (role,) = tokenizer.encode("assistant").ids
    assert tokenizer.decode([role]) == "assistant"
    with pytest.raises(ValueError, match="token_order is 'mine'; needs one of released, training"):
        convert.add_tokens(tokenizer, "mine")


@pytest.mark.parametrize("padding", [0, 30])
def test_a_fresh_eagle_of_two_folders_answers(monkeypatch, tmp_path, padding):
    """Its folder is whole: model, tokenizer and processor, for tiles of the size that was asked for."""
    tokenizer = llm_tokenizer()
    before = convert.vocab_size(tokenizer)
    llm = test_assemble.llm(tmp_path / "llm", vocab_size=before + padding)
    tokenizer.save(str(llm / "tokenizer.json"))
    (llm / "generation_config.json").write_text(json.dumps({"eos_token_id": 3, "top_k": 20}))  # Llama's know no ChatML
    config = test_assemble.transformers.SiglipVisionConfig(**test_assemble.VISION)
    vision = test_assemble.saved(test_assemble.transformers.SiglipVisionModel(config), tmp_path / "vision")
    (vision / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4] * 3, "image_std": [0.3] * 3}))
    arguments = ["assemble", vision, llm, tmp_path / "out", "--tile-px", 28, "--token-order", "training", "--seed", 3]
    monkeypatch.setattr("sys.argv", ["eagle", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert not exit_.value.code
    model = Eagle.from_pretrained(tmp_path / "out", dtype=torch.float32)
    processor = Processor.from_pretrained(tmp_path / "out")
    assert model.cfg.text.vocab_size == before + 11
    assert model.cfg.image_token_id == processor.encoder.context_id == before
    assert (processor.config.tile_px, processor.config.patch_px, processor.config.mean) == (28, 7, (0.4, 0.4, 0.4))
    row = processor([{"role": "user", "content": "What?"}])
    assert len(model.generate(row, max_new_tokens=3)[0]) == 3
    ends = {"eos_token_id": [tokenizer.token_to_id("<|im_end|>"), 3], "top_k": 20}
    assert ends.items() <= json.loads((tmp_path / "out/generation_config.json").read_text()).items()
    old, head = load_file(llm / weights.SINGLE)["lm_head.weight"].float(), model.lm_head.weight
    assert torch.equal(head[before:], old[:before].mean(0).bfloat16().float().expand(11, -1))


def test_the_example_teaches_a_new_connector(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "examples")
    losses = import_module("new_eagle").main([str(tmp_path / "out")])
    assert losses[-1] < 0.7 * losses[0]
    start, trained = (
        Eagle.from_pretrained(tmp_path / name, dtype=torch.float32) for name in ("out-start/start", "out")
    )
    assert torch.equal(trained.llm.embed_tokens.weight, start.llm.embed_tokens.weight)
    assert not torch.equal(trained.connector.up.weight, start.connector.up.weight)
    assert Processor.from_pretrained(tmp_path / "out").config.tile_px == 56
