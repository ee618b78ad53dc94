"""Tokens of a text beside any frames, by tables: as many as encoding makes, for tokenizers of several kinds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from eagle_model.data.chat import SPECIAL_TOKENS, ChatEncoder
from eagle_model.data.frame_tokens import FrameTokens, rounded_cents
from eagle_model.data.sample import ImageRef, Sample, Turn, VideoRef
from eagle_model.data.templates import TEMPLATES
from eagle_model.data.tokenizer import add_special_tokens, train_tokenizer
from tests.data.conftest import TEXTS

LABELS = [f"Frame {k} sample at {k * 7 / 3:.2f}s: of {k}.00 seconds at 2.{k % 100:02} fps" for k in range(1, 1500, 7)]
GROUPS_OF_THREE = pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")


def trained(splits: Sequence[pre_tokenizers.PreTokenizer]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(splits))
    special = list(SPECIAL_TOKENS)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LABELS * 3, trainer)
    add_special_tokens(tokenizer)
    return tokenizer


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
TOKENIZERS = {
    "qwen": train_tokenizer(TEXTS + LABELS, 500),
    "gpt2": trained([pre_tokenizers.ByteLevel(add_prefix_space=False)]),  # " 12" is one word
    "threes": trained([GROUPS_OF_THREE, BYTES]),
    "whole": trained([BYTES]),  # numbers and letters run together
}
COUNTERS = {
    (kind, template): FrameTokens(ChatEncoder(tokenizer, template=template))
    for kind, tokenizer in TOKENIZERS.items()
    for template in TEMPLATES
}


def test_which_tokenizers_tables_are_exact_for() -> None:
    found = {kind: {COUNTERS[kind, template].is_exact for template in TEMPLATES} for kind in TOKENIZERS}
    assert found == {"qwen": {True}, "gpt2": {True}, "threes": {True}, "whole": {False}}


PARTS = st.lists(
    st.sampled_from(
        ["How many? 12", " ", "7", "<box>", "A film:\n", ImageRef(Path("a.png")), "video", "video", "pages"]
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(COUNTERS)), PARTS, st.data())
def test_tables_count_what_encoding_makes(key: tuple[str, str], parts: list, data: st.DataObject) -> None:
    counter = COUNTERS[key]
    seconds: list[float | None] = []
    for i, part in enumerate(parts):
        if part in ("video", "pages"):
            seconds.append(None if part == "pages" else data.draw(st.floats(0.04, 20_000)))
            parts[i] = VideoRef(Path(f"{i}.mp4"), number=len(seconds))
    sample = Sample("s", (Turn("user", tuple(parts)), Turn("assistant", ("It is 7.",))))
    times = []
    for length in seconds:
        num = data.draw(st.integers(1, 40))
        step = 1.0 if length is None else data.draw(st.sampled_from([length / num, 0.125, 1 / 24, 1001 / 30_000]))
        times.append(np.arange(num) * step + (0 if length is None else data.draw(st.sampled_from([0.0, 9.99, 2.675]))))
    want = counter._encoder.num_text_tokens(sample, seconds, [t.tolist() for t in times])
    assert counter.counter(sample, seconds)(times) == want


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.floats(0, 1e6), st.integers(0, 10**7).map(lambda n: n / 1000), st.integers(0, 10**6).map(lambda n: n / 8)
    )
)
def test_cents_are_those_that_a_text_shows(value: float) -> None:
    near = np.array([value, np.nextafter(value, 9e9), 2.675, 0.285, 0.125, 0.375, 1.005])
    assert [f"{cents / 100:.2f}" for cents in rounded_cents(near).tolist()] == [f"{v:.2f}" for v in near.tolist()]


def test_numbers_beyond_the_tables_are_encoded_each(tokenizer: Tokenizer) -> None:
    counter = FrameTokens(ChatEncoder(tokenizer))
    sample = Sample("s", (Turn("user", (VideoRef(Path("a.mp4")),)), Turn("assistant", ("Yes.",))))
    times = [np.array([0.0, 5e6, 1e7])]
    want = counter._encoder.num_text_tokens(sample, [1.5e7], times)
    assert counter.counter(sample, [1.5e7])(times) == want


@pytest.mark.parametrize("template", TEMPLATES)
def test_pictures_that_count_frames_are_counted_the_long_way(template: str) -> None:
    both = Sample("s", (Turn("user", (VideoRef(Path("a.mp4")), ImageRef(Path("a.png")))),))
    assert COUNTERS["qwen", template].depends_on_pictures(both) == (template == "demo-1")
