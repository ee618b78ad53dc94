"""What `eagle chat` does, from Python: streamed text, the turn's end, markup, and one checkpoint for both halves."""

import json
import re
import shutil
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eagle_model.checkpoints import CheckpointError
from eagle_model.data.processor import Processor, ProcessorConfig
from eagle_model.data.sampling import SamplingConfig
from eagle_model.data.tokenizer import train_tokenizer
from eagle_model.infer import Assistant
from eagle_model.model.config import tiny
from eagle_model.model.eagle import Eagle
from eagle_model.train import checkpoint
from tests.video.make import draw, write_video

README = (Path(__file__).parents[2] / "README.md").read_text()
ANSWER = "A <ref>caf\u00e9</ref> at <box>[[1,2,3,4]]</box> \U0001f600."
QUESTION = [{"role": "user", "content": "Where?"}]


def processor() -> Processor:
    sampling = SamplingConfig(context_tokens=256, min_frames=2)
    return Processor(
        train_tokenizer(["Where? A cat."], 300), ProcessorConfig(tile_px=28, patch_px=7, sampling=sampling)
    )


def save_model(folder: Path, seed: int = 0) -> None:
    ours = processor()
    torch.manual_seed(seed)
    vocab_size = ours.tokenizer.get_vocab_size()
    Eagle(tiny(vocab_size=vocab_size, image_token_id=ours.encoder.context_id)).save_pretrained(folder)
    ours.save_pretrained(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints of different weights, and an optimizer's state that nobody needs to read."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "run.json").write_text("{}")

    def write(step: int, partial: Path) -> None:
        save_model(partial, seed=step)
        (partial / "optimizer.safetensors").write_bytes(b"0" * 1000)

    for step in (1, 2):
        checkpoint.save(folder / "checkpoints", step, "run", lambda partial, step=step: write(step, partial))
    return folder


def answering(monkeypatch: pytest.MonkeyPatch, assistant: Assistant, ids: list[int]) -> None:
    """Lets the model say these tokens, and then end its turn."""
    said = iter([*ids, assistant.processor.encoder.turn_end_id])

    def forward(model, works):
        logits_SV = torch.zeros(1, assistant.processor.tokenizer.get_vocab_size())
        logits_SV[0, next(said)] = 1.0
        return logits_SV

    monkeypatch.setattr(assistant.engine, "_forward", forward)


@lru_cache
def loaded(run: Path) -> Assistant:
    return Assistant(run)


def ids_of(assistant: Assistant, text: str) -> list[int]:
    return list(assistant.processor.encoder._encode_text(text))


def test_text_comes_in_pieces_until_the_turns_end_with_its_markup(monkeypatch, run):
    assistant = Assistant(run)
    encoder = assistant.processor.encoder
    ids = ids_of(assistant, ANSWER)
    control = [encoder._ids["<img>"], encoder.context_id, encoder._ids["<|im_start|>"]]
    answering(monkeypatch, assistant, [*ids[:3], *control, *ids[3:], encoder.turn_end_id, *ids])
    pieces = list(assistant.stream(QUESTION))
    assert "".join(pieces) == ANSWER
    assert len(pieces) > 20
    assert "\ufffd" not in "".join(pieces)  # no half of a character
    history = [*QUESTION, {"role": "assistant", "content": "".join(pieces)}, *QUESTION]
    shown = assistant.processor(history).token_ids_T.tolist()
    at = next(i for i in range(len(shown)) if shown[i : i + len(ids)] == ids)  # the tokens that were said
    assert shown[at + len(ids)] == encoder.turn_end_id


def test_a_character_that_is_cut_short_is_shown_as_such(monkeypatch, run):
    assistant = Assistant(run)
    answering(monkeypatch, assistant, ids_of(assistant, "ok \U0001f600")[:-1])
    assert "".join(assistant.stream(QUESTION)).rstrip("\ufffd") == "ok "


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(st.integers(0, 10_000), max_size=40))
def test_whatever_tokens_come_the_pieces_are_the_text(run, numbers):
    """Bytes that are no characters, control tokens, markup, in any order."""
    assistant = loaded(run)
    encoder, tokenizer = assistant.processor.encoder, assistant.processor.tokenizer
    ids = [number % tokenizer.get_vocab_size() for number in numbers]
    ids = [token_id for token_id in ids if token_id not in encoder.stop_token_ids]
    with pytest.MonkeyPatch.context() as patch:
        answering(patch, assistant, ids)
        pieces = list(assistant.stream(QUESTION))
    assert "".join(pieces) == tokenizer.decode(encoder.spoken_ids(ids), skip_special_tokens=False)
    assistant.processor([*QUESTION, {"role": "assistant", "content": "".join(pieces)}, *QUESTION])  # an empty one too


def test_the_end_of_text_ends_it_too(monkeypatch, run):
    assistant = Assistant(run)
    end = assistant.processor.tokenizer.token_to_id("<|endoftext|>")
    answering(monkeypatch, assistant, [*ids_of(assistant, "yes"), end, *ids_of(assistant, "no")])
    assert "".join(assistant.stream(QUESTION)) == "yes"


def test_it_says_what_the_model_generates(run):
    """The same tokens as `generate`; the newest checkpoint's, for the model and the processor."""
    assistant = Assistant(run, max_new_tokens=12)
    newest = run / "checkpoints" / "step-000002"
    model, ours = Eagle.from_pretrained(newest), assistant.processor
    (ids,) = model.generate(ours(QUESTION), max_new_tokens=12, stop_token_ids=ours.encoder.stop_token_ids)
    want = ours.tokenizer.decode(ours.encoder.spoken_ids(ids), skip_special_tokens=False)
    assert "".join(assistant.stream(QUESTION)) == want
    for folder in (newest, run):
        assert all(map(torch.equal, Eagle.from_pretrained(folder).parameters(), model.parameters()))
        assert Processor.from_pretrained(folder).config == processor().config


def test_the_answer_has_its_room(run):
    assistant = Assistant(run)
    assert (assistant.max_new_tokens, assistant.processor.config.sampling.context_tokens) == (64, 192)
    for number in (0, 256, 9999):
        with pytest.raises(ValueError, match=f"max_new_tokens is {number}; the model's context is 256. Needs 1 to 255"):
            Assistant(run, max_new_tokens=number)


def test_a_wrong_message_is_an_error_at_once(run):
    with pytest.raises(ValueError, match=r"nowhere\.png"):
        Assistant(run).stream([{"role": "user", "content": [{"type": "image", "image": "nowhere.png"}]}])


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    weights = tmp_path / "run/checkpoints/step-000002/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    said: list[str] = []
    assistant = Assistant(tmp_path / "run", say=said.append)
    older = Eagle.from_pretrained(run / "checkpoints/step-000001")
    assert all(map(torch.equal, assistant.model.parameters(), older.parameters()))
    assert len(said) == 1 and re.match(r"Passing over step-000002: .*model\.safetensors has SHA-256", said[0])
    with pytest.raises(CheckpointError, match=r"model\.safetensors has SHA-256"):
        Assistant(weights.parent)


def test_a_released_folder(tmp_path):
    """What nvidia/Eagle2.5-8B has: no file of ours."""
    save_model(tmp_path)
    (tmp_path / "eagle_processor.json").unlink()
    about = {"image_mean": [0.5, 0.5, 0.25], "image_std": [0.5] * 3, "max_dynamic_tiles": 6, "use_thumbnail": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    assistant = Assistant(tmp_path, max_new_tokens=3)
    config = assistant.processor.config
    assert (config.tile_px, config.patch_px, config.mean) == (28, 7, (0.5, 0.5, 0.25))
    assert (config.sampling.max_tiles, config.sampling.context_tokens) == (6, 32_768 - 3)
    assert isinstance("".join(assistant.stream(QUESTION)), str)


def test_the_readmes_lines_run(run, tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"((?:^    .*\n)*^    from eagle_model\.infer .*\n(?:^    .*\n)*)", README, re.MULTILINE)
    lines = [line.removeprefix("    ") for line in block.splitlines()]
    assert len(lines) <= 6
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/first").symlink_to(run)
    write_video(tmp_path / "film.mp4", [draw(i) for i in range(50)], fps=25)
    exec("\n".join(lines), {})
    assert capsys.readouterr().out
