"""Tokenizers with Eagle's tokens: trained, completed, counting; and files that hold none."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from eagle_model.data.chat import SPECIAL_TOKENS, ChatEncoder
from eagle_model.data.sample import Sample, Turn
from eagle_model.data.tokenizer import (
    add_special_tokens,
    counting_tokenizer,
    read_released_tokenizer,
    read_tokenizer,
    token_bytes,
    train_tokenizer,
)
from tests.data.conftest import TEXTS


def test_trained_tokenizer_encodes_everything_and_ends_in_the_special_tokens(tokenizer: Tokenizer) -> None:
    size = tokenizer.get_vocab_size()
    assert size <= 400
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *SPECIAL_TOKENS]
    assert [tokenizer.id_to_token(i) for i in range(size - len(special), size)] == special
    for text in ("plain", "ünï ∑ 🦅 \x00\t", "<img>"):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert len(tokenizer.encode("The first video sampled with").ids) <= 6  # it did learn words


def test_bytes_of_tokens_are_those_of_the_text(tokenizer: Tokenizer) -> None:
    text = "plain \u00e9 \U0001f600 <img>\ufffd\x00<|im_end|>"
    ids = tokenizer.encode(text).ids
    assert b"".join(token_bytes(tokenizer, token_id) for token_id in ids) == text.encode()
    singles = [i for i in range(tokenizer.get_vocab_size()) if len(tokenizer.id_to_token(i)) == 1]
    assert sorted(token_bytes(tokenizer, i) for i in singles) == [bytes([byte]) for byte in range(256)]


def test_training_is_repeatable_and_survives_saving() -> None:
    a, b = train_tokenizer(TEXTS, 350), train_tokenizer(iter(TEXTS), 350)
    assert a.to_str() == b.to_str() == Tokenizer.from_str(a.to_str()).to_str()


def test_vocabulary_without_room_is_refused() -> None:
    assert train_tokenizer([], 268).get_vocab_size() == 268
    with pytest.raises(ValueError, match="vocab_size is 267; needs at least 268: 256 bytes and 12 special tokens"):
        train_tokenizer([], 267)


def test_adding_special_tokens_twice_adds_none(tokenizer: Tokenizer) -> None:
    own = Tokenizer.from_str(tokenizer.to_str())
    assert add_special_tokens(own) == 0
    assert own.to_str() == tokenizer.to_str()


def test_counting_tokenizer_cuts_as_qwen_does() -> None:
    counting = counting_tokenizer()
    label = ["Frame", " ", "1", "2", " sample", " at", " ", "0", ".", "5", "0", "s", ":", " "]
    assert len(counting.encode("".join(label)).ids) == len(label)
    encoder = ChatEncoder(counting, system="")
    sample = Sample("s", (Turn("user", ("don't",)),))
    assert encoder.num_text_tokens(sample, [], []) == 7  # <|im_start|> user newline don 't <|im_end|> newline


def test_files_that_hold_no_tokenizer_are_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json does not exist; needs the tokenizer\.json that belongs"):
        read_tokenizer(tmp_path / "none.json")
    (tmp_path / "t.json").write_text("[]")
    with pytest.raises(ValueError, match=r"t\.json is no tokenizer\.json: "):
        read_tokenizer(tmp_path / "t.json")
    tokenizer.save(str(tmp_path / "t.json"))
    assert read_tokenizer(tmp_path / "t.json").to_str() == tokenizer.to_str()


def write_old_files(folder: Path, *more_merges: str, **about: object) -> dict[str, dict]:
    """A tokenizer in Qwen2.5's first three files; returns what they say of added tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["Ġ a", "c a", "ca t", "Ġa n", *more_merges]
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, *(merge.replace(" ", "") for merge in merges)])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", *SPECIAL_TOKENS]
    added = {
        str(len(vocabulary) + i): {"content": name, "special": name != "<tool_call>"} for i, name in enumerate(names)
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added, **about}))
    return added


def test_a_released_folder_without_tokenizer_json_is_read_as_transformers_does(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    added = write_old_files(tmp_path)
    ours = read_released_tokenizer(tmp_path)
    theirs = transformers.Qwen2Tokenizer.from_pretrained(tmp_path)
    text = "<|im_start|>user\nA cat, and 12 caf\u00e9s\u0301!  <box>[[1]]</box><|im_end|>"
    assert ours.encode(text).ids == theirs(text)["input_ids"]
    assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)
    assert {str(ours.token_to_id(token["content"])) for token in added.values()} == added.keys()
    ChatEncoder(ours)  # has all that a chat needs


@pytest.mark.parametrize("has_space", [False, True])
def test_gpt2s_tokenizer_cuts_words_as_its_own_class_does(tmp_path: Path, has_space: bool) -> None:
    """GR00T N1's: numbers stay whole, line ends apart, and nothing is normalised."""
    transformers = pytest.importorskip("transformers")
    write_old_files(tmp_path, "Ġ 1", "Ġ1 2", "Ċ Ċ", tokenizer_class="GPT2Tokenizer", add_prefix_space=has_space)
    ours, theirs = read_released_tokenizer(tmp_path), transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    text = "<|im_start|>user\na cat\n\nand 12 caf\u00e9s\u0301!  <box>[[1]]</box><|im_end|>"
    assert ours.encode(text).ids == theirs(text)["input_ids"]
    assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == theirs.decode(theirs(text)["input_ids"])


def test_old_files_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    write_old_files(tmp_path)
    for content, message in [
        (
            {"added_tokens_decoder": {"999": {"content": "<img>", "special": True}}},
            "gives '<img>' an id that does",
        ),
        ({}, "has no added_tokens_decoder that can be read"),
        ({"added_tokens_decoder": {"x": {}}}, "has no added_tokens_decoder that can be read"),
        ([], "has no added_tokens_decoder that can be read"),
        ({"tokenizer_class": "RobertaTokenizer"}, "is 'RobertaTokenizer'; without tokenizer.json, Qwen2Tokenizer and"),
    ]:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            read_released_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("no merge")
    with pytest.raises(ValueError, match="are no tokenizer"):
        read_released_tokenizer(tmp_path)
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json does not exist"):
        read_released_tokenizer(tmp_path)
