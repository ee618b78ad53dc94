"""What a new run starts from: a preset or a folder, its processor, and what does not fit them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eagle_model.data.prepare import prepare
from eagle_model.data.remote import RemoteConfig
from eagle_model.fields import ConfigError
from eagle_model.train.recipes import debug
from eagle_model.train.start import new_model, with_absolute_paths
from eagle_model.train.trainer import Trainer
from tests.train.chats import assert_equal, config_of, quiet, run, write_chats


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> Path:
    return write_chats(tmp_path_factory.mktemp("chats"))


def test_the_same_seed_gives_the_same_model(chats):
    def parameters(seed):
        torch.manual_seed(seed)
        return dict(new_model(config_of(chats))[0].named_parameters())

    assert_equal(parameters(1), parameters(1))
    assert not torch.equal(parameters(1)["lm_head.weight"], parameters(2)["lm_head.weight"])


def test_starts_from_a_checkpoint_as_from_any_model(chats, tmp_path):
    run(config_of(chats), tmp_path / "first")
    folder = tmp_path / "first" / "checkpoints" / "step-000004"
    second = Trainer(
        config_of(chats, f"model={folder}", "processor.sampling.context_tokens=200"), tmp_path / "second", say=quiet
    )
    assert second.step == 0
    assert_equal(
        dict(second.model.state_dict()),
        dict(Trainer(config_of(chats), tmp_path / "first", say=quiet).model.state_dict()),
    )
    assert second.processor.config.sampling.context_tokens == 200
    assert second.train()


def test_a_model_without_pixel_shuffle_trains(chats, tmp_path):
    config = config_of(chats, "processor.use_pixel_shuffle=false")
    trainer = Trainer(config, tmp_path / "first", say=quiet)
    assert trainer.train()
    assert trainer.model.cfg.tokens_per_tile == trainer.processor.config.tokens_per_tile == 16
    with pytest.raises(ValueError, match=r"processor\.use_pixel_shuffle is True; the model in .* needs False"):
        Trainer(config_of(chats, f"model={tmp_path / 'first'}"), tmp_path / "second", say=quiet)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (
            ["model=/nowhere"],
            r"model is '/nowhere'; needs a preset \(tiny, eagle2_5_8b, .*\) or a folder with config\.json",
        ),
        (["processor.tile_px=56"], r"processor\.tile_px is 56; the model in .* needs 28"),
        (["processor.patch_px=14"], r"processor\.patch_px is 14; the model in .* needs 7"),
        (
            ["processor.std=1,1,1"],
            r"processor\.std is \(1\.0, 1\.0, 1\.0\); the model in .* needs \(0\.5, 0\.5, 0\.5\)",
        ),
        (
            ["tokenizer=/nowhere.json"],
            r"/nowhere\.json does not exist; needs the tokenizer\.json that belongs",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_named(chats, tmp_path_factory, assignments, message):
    folder = tmp_path_factory.mktemp("model")
    model, processor = new_model(config_of(chats))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    with pytest.raises(ValueError, match=message):
        new_model(config_of(chats, f"model={folder}", *assignments))


def test_a_tokenizer_that_is_none_is_named(chats, tmp_path):
    (tmp_path / "t.json").write_text('{"model": 3}')
    for preset_or_not in ([], [f"model={tmp_path}"]):
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(ValueError, match=r"t\.json is no tokenizer\.json: "):
            new_model(config_of(chats, f"tokenizer={tmp_path / 't.json'}", *preset_or_not))
    with pytest.raises(ValueError, match=r"/nowhere\.json does not exist; needs the tokenizer\.json"):
        new_model(config_of(chats, "tokenizer=/nowhere.json"))


def test_a_tokenizer_of_another_model_is_refused(chats, tmp_path):
    model, processor = new_model(config_of(chats))
    model.save_pretrained(tmp_path / "model")
    processor.tokenizer.add_tokens([f"word{i}" for i in range(50)])
    processor.save_pretrained(tmp_path / "model")
    size = processor.tokenizer.get_vocab_size()
    with pytest.raises(ConfigError, match=rf"has {size} tokens; the model in .* has room for {size - 50}"):
        new_model(config_of(chats, f"model={tmp_path / 'model'}"))


def test_the_own_tokenizer_knows_the_frame_labels(chats):
    _, processor = new_model(config_of(chats))
    label = processor.tokenizer.encode("Frame 3 sample at 0.50s: ").ids
    assert len(label) <= 12  # of 25 bytes: what every frame of a video costs beside its pixels
    assert processor.tokenizer.decode(label) == "Frame 3 sample at 0.50s: "


def test_a_prepared_folder_brings_its_tokenizer(chats: Path, tmp_path: Path) -> None:
    _, processor = new_model(config_of(chats))
    prepare(chats / "chats.jsonl", processor, tmp_path / "prepared")
    trainer = run(config_of(chats, f"data.recipe={tmp_path / 'prepared'}", "max_steps=1"), tmp_path / "run")
    assert trainer.processor.tokenizer.to_str() == processor.tokenizer.to_str()


def test_a_context_longer_than_the_model_s_is_refused_with_the_way_out(chats):
    long = "processor.sampling.context_tokens=40000"
    with pytest.raises(
        ConfigError, match=r"is 40000; the model in tiny is for documents of 32768 .* Set max_position_embeddings=40000"
    ):
        new_model(config_of(chats, long))
    model, _ = new_model(config_of(chats, long, "max_position_embeddings=50000"))
    assert model.cfg.text.max_position_embeddings == 50_000


def test_a_config_means_the_same_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = debug()
    remote = RemoteConfig(prefixes=("s3://films/",), cache_folder="c")
    data = replace(config.data, recipe="d/rows.jsonl", index_folder="i", proxies="p", remote=remote)
    typed = replace(config, tokenizer="t.json", data=data)
    there = with_absolute_paths(typed)
    assert (there.model, there.tokenizer) == ("tiny", str(tmp_path / "t.json"))
    assert (there.data.recipe, there.data.index_folder) == (str(tmp_path / "d/rows.jsonl"), str(tmp_path / "i"))
    assert there.data.proxies == str(tmp_path / "p")
    assert there.data.remote is not None and there.data.remote.cache_folder == str(tmp_path / "c")
    assert with_absolute_paths(replace(typed, model="released")).model == str(tmp_path / "released")
    monkeypatch.chdir("/")
    assert with_absolute_paths(there) == there
