"""Packing of tokenised samples, and tokenizers with Eagle's tokens."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer

from eagle_model.batch import IGNORE_INDEX
from eagle_model.data.chat import SPECIAL_TOKENS, ChatEncoder, SampledVideo
from eagle_model.data.media import DataError, ImageRef, Sample, Turn
from eagle_model.data.tokens import (
    TokenizedSample,
    add_special_tokens,
    counting_tokenizer,
    pack_row,
    text_token_counter,
    tokenize,
    train_tokenizer,
)
from tests.data.conftest import TEXTS


def sample_of(name: str, token_ids: list[int], labels: list[int], visual: list[int]) -> TokenizedSample:
    return TokenizedSample(name, torch.tensor(token_ids), torch.tensor(labels), torch.tensor(visual, dtype=torch.int64))


def test_pack_row_golden() -> None:
    x = IGNORE_INDEX
    patches_IPK = torch.randn(3, 4, 5)
    batch = pack_row(
        [
            sample_of("a", [10, 11, 12, 13], [x, x, 12, 13], [1]),
            sample_of("b", [20], [20], []),  # a label on a first token has no position to predict it from
            sample_of("c", [30, 31, 32], [x, 31, x], [0, 2]),
        ],
        patches_IPK,
    )
    assert batch.token_ids_T.tolist() == [10, 11, 12, 13, 20, 30, 31, 32]
    assert batch.labels_T.tolist() == [x, 12, 13, x, x, 31, x, x]
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 0, 0, 1, 2]
    assert batch.cu_seqlens.tolist() == [0, 4, 5, 8]
    assert batch.visual_rows_N.tolist() == [1, 5, 7]
    assert batch.sample_ids == ("a", "b", "c")
    assert batch.patches_IPK is patches_IPK
    dtypes = [batch.token_ids_T.dtype, batch.labels_T.dtype, batch.visual_rows_N.dtype]
    assert dtypes == [torch.int64] * 3
    assert batch.positions_T.dtype == batch.cu_seqlens.dtype == torch.int32


def test_empty_row_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples; needs at least one"):
        pack_row([], torch.empty(0, 1, 1))


def test_tokenize_finds_the_visual_tokens(tokenizer: Tokenizer) -> None:
    encoder = ChatEncoder(tokenizer)
    sample = Sample("s", (Turn("user", "<image-1>What?"), Turn("assistant", "It.")), (ImageRef(path=None),))  # type: ignore[arg-type]
    tokens = tokenize(encoder, sample, videos=[], tiles_per_image=[3], tokens_per_tile=4)
    assert tokens.token_ids_T[tokens.visual_positions_N].tolist() == [encoder.context_id] * 12
    assert tokens.token_ids_T.shape == tokens.labels_T.shape
    assert text_token_counter(encoder, sample, lambda video, n: 1.0)([]) + 12 == tokens.token_ids_T.numel()


def test_media_that_the_text_does_not_show_is_an_error(tokenizer: Tokenizer) -> None:
    sample = Sample("s", (Turn("user", "What?"),), (ImageRef(path=None),))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="s: the text has 0 visual tokens, but the plan's 3 tiles take 3 x 4"):
        tokenize(ChatEncoder(tokenizer), sample, videos=[], tiles_per_image=[3], tokens_per_tile=4)


def test_counter_names_the_rate_of_what_is_sampled(tokenizer: Tokenizer) -> None:
    encoder = ChatEncoder(tokenizer)
    sample = Sample("s", (Turn("user", "<video-1>"),), (), (None,))  # type: ignore[arg-type]
    count = text_token_counter(encoder, sample, lambda video, num_frames: num_frames * 100.0)
    for times in ([0.0], [0.0, 100.25]):
        video = SampledVideo(tuple(times), len(times) * 100.0)
        token_ids, _ = encoder.encode(sample, videos=[video], tiles_per_image=[], tokens_per_tile=1)
        assert count([times]) == len(token_ids) - len(times)


# ---- tokenizers


def test_trained_tokenizer_encodes_everything_and_ends_in_the_special_tokens(tokenizer: Tokenizer) -> None:
    size = tokenizer.get_vocab_size()
    assert size <= 400
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *SPECIAL_TOKENS]
    assert [tokenizer.id_to_token(i) for i in range(size - len(special), size)] == special
    for text in ("plain", "ünï ∑ 🦅 \x00\t", "<img>"):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert len(tokenizer.encode("The first video sampled with").ids) <= 6  # it did learn words


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
    sample = Sample("s", (Turn("user", "don't"),))
    assert encoder.num_text_tokens(sample, []) == 7  # <|im_start|> user newline don 't <|im_end|> newline
