"""Tokens by a table of words are those that the tokenizer makes, for any text of ASCII."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from eagle_model.data import word_counts
from eagle_model.data.chat import ChatEncoder
from eagle_model.data.sample import Sample, Turn
from eagle_model.data.tokenizer import add_special_tokens, train_tokenizer
from eagle_model.data.word_counts import QWEN_WORDS, WordCounts

TEXTS = [
    "What's it? They'LL say it's 12.5 s, don't they...\n\n  No!  ",
    "The dog isn't here.\r\n\tdef f(x):\n    return x",
] * 5


def qwen_like(pattern: str = QWEN_WORDS, *, dropout: float | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    )
    if dropout is not None:
        fields = json.loads(tokenizer.to_str())
        fields["model"]["dropout"] = dropout
        tokenizer = Tokenizer.from_str(json.dumps(fields))
    return tokenizer


TOKENIZER = qwen_like()
COUNTS = WordCounts.of(TOKENIZER)


@settings(max_examples=500, deadline=None)
@given(
    st.text(st.characters(codec="ascii"), max_size=60)
    | st.text(st.sampled_from("abS'tTLleRr \n\r\t\x0b\x1c.,(5"), max_size=60)
)
def test_it_counts_what_the_tokenizer_makes(text: str) -> None:
    assert COUNTS is not None
    assert COUNTS.count(text) == len(TOKENIZER.encode(text, add_special_tokens=False))


def test_other_texts_are_left_to_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert COUNTS is not None
    assert COUNTS.count("caf\u00e9") is None
    monkeypatch.setattr(word_counts, "MAX_CHARS", 10)
    assert COUNTS.count("eleven char") is None


def test_other_tokenizers_have_no_table() -> None:
    assert WordCounts.of(qwen_like(r"\s+|\S+")) is None
    assert WordCounts.of(qwen_like(dropout=0.1)) is None
    added = qwen_like()
    add_special_tokens(added)
    assert WordCounts.of(added) is None
    assert WordCounts.of(train_tokenizer(TEXTS, 300)) is None
    lower = qwen_like()
    lower.normalizer = normalizers.Lowercase()
    assert WordCounts.of(lower) is None


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_counts, "MAX_WORDS", 5)
    table = word_counts._Table(TOKENIZER)
    words = [f" {chr(97 + i)}{chr(97 + j)}" for i in range(9) for j in range(3)] + ["x" * 65]
    random.Random(0).shuffle(words)
    for word in words * 2:
        assert table[word] == len(TOKENIZER.encode(word, add_special_tokens=False))
        assert len(table) <= 5 and "x" * 65 not in table


def test_texts_of_a_chat_are_counted_alike_with_and_without_it() -> None:
    tokenizer = qwen_like()
    add_special_tokens(tokenizer)
    encoder = ChatEncoder(tokenizer)
    assert encoder._words is not None
    texts = [*TEXTS[:2], "", "caf\u00e9", "<box>[[1]]</box> it's", "<|im_end|> is text", "a" * 70_000]
    nums = encoder.nums_of_tokens(texts)
    assert nums == [len(encoder._encode_text(text)) for text in texts]
    for text in texts:
        sample = Sample("s", (Turn("user", (text,)), Turn("assistant", (f" {text}\n",)), Turn("user", ("a", text))))
        known, left = encoder.uncounted(sample, [])
        assert known + sum(encoder.nums_of_tokens(left)) == encoder.num_span_tokens(sample, [])  # type: ignore[arg-type]
