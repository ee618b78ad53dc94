"""Tokenised samples, the packed row made of them, and tokenizers that have Eagle's special tokens.

Dims    T tokens, S documents of a row, N visual tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from eagle_model.batch import IGNORE_INDEX, PackedBatch
from eagle_model.data.chat import END_OF_TEXT, SPECIAL_TOKENS, TURN_END, TURN_START, ChatEncoder, SampledVideo
from eagle_model.data.media import DataError, Sample

_TEXT_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)  # what every Qwen2.5 tokenizer has, in its order


@dataclass(frozen=True, slots=True)
class TokenizedSample:
    id: str
    token_ids_T: Tensor  # int64
    labels_T: Tensor  # int64, not shifted: the token itself where supervised, else IGNORE_INDEX
    visual_positions_N: Tensor  # int64: where the visual tokens are, in the order of tiles


def tokenize(
    encoder: ChatEncoder,
    sample: Sample,
    *,
    videos: Sequence[SampledVideo],
    tiles_per_image: Sequence[int],
    tokens_per_tile: int,
    generation_prompt: bool = False,
) -> TokenizedSample:
    """The sample's tokens. Raises DataError when the visual tokens are not as many as the plan's tiles take."""
    token_ids, labels = encoder.encode(
        sample,
        videos=videos,
        tiles_per_image=tiles_per_image,
        tokens_per_tile=tokens_per_tile,
        generation_prompt=generation_prompt,
    )
    token_ids_T = torch.tensor(token_ids, dtype=torch.int64)
    visual_positions_N = token_ids_T.eq(encoder.context_id).nonzero().flatten()
    num_tiles = sum(tiles_per_image) + sum(len(video.timestamps_seconds) for video in videos)
    if visual_positions_N.numel() != num_tiles * tokens_per_tile:
        raise DataError(
            f"{sample.id}: the text has {visual_positions_N.numel()} visual tokens, but the plan's {num_tiles} tiles "
            f"take {num_tiles} x {tokens_per_tile}; the text must name every image and video once."
        )
    return TokenizedSample(sample.id, token_ids_T, torch.tensor(labels, dtype=torch.int64), visual_positions_N)


def text_token_counter(
    encoder: ChatEncoder,
    sample: Sample,
    frames_per_second: Callable[[int, int], float],
    *,
    generation_prompt: bool = False,
) -> Callable[[Sequence[Sequence[float]]], int]:
    """What `sampling.plan` asks: how many tokens beside the visual ones, given each video's sampled times.

    frames_per_second(video, num_frames) is the rate that the text will name; it is part of the text, so of the count.
    """

    def num_text_tokens(timestamps_seconds: Sequence[Sequence[float]]) -> int:
        videos = [
            SampledVideo(tuple(times), frames_per_second(v, len(times))) for v, times in enumerate(timestamps_seconds)
        ]
        return encoder.num_text_tokens(sample, videos, generation_prompt=generation_prompt)

    return num_text_tokens


def pack_row(samples: Sequence[TokenizedSample], patches_IPK: Tensor) -> PackedBatch:
    """One row: documents end to end, labels shifted within each, positions from 0 in each.

    patches_IPK: the pixels of all samples, in their order. Raises ValueError when `samples` is empty.
    """
    if not samples:
        raise ValueError("pack_row: no samples; needs at least one.")
    lengths = [sample.token_ids_T.numel() for sample in samples]
    starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    shifted = [torch.cat([s.labels_T[1:], s.labels_T.new_full((1,), IGNORE_INDEX)]) for s in samples]
    return PackedBatch(
        token_ids_T=torch.cat([sample.token_ids_T for sample in samples]),
        labels_T=torch.cat(shifted),
        positions_T=torch.cat([torch.arange(length, dtype=torch.int32) for length in lengths]),
        cu_seqlens=torch.tensor(starts, dtype=torch.int32),
        patches_IPK=patches_IPK,
        visual_rows_N=torch.cat([s.visual_positions_N + start for s, start in zip(samples, starts)]),
        sample_ids=tuple(sample.id for sample in samples),
    )


def read_tokenizer(path: Path) -> Tokenizer:
    """From a tokenizer.json. Raises ValueError that names the file when it is missing or holds something else."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; needs the tokenizer.json that belongs to the model.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is no tokenizer.json: {error}.") from None


def add_special_tokens(tokenizer: Tokenizer) -> int:
    """Gives a tokenizer, in place, the tokens of chat.SPECIAL_TOKENS and of ChatML that it lacks, in that order.

    Returns how many were added. The model's embedding must have `tokenizer.get_vocab_size()` rows afterwards.
    """
    wanted = [*_TEXT_TOKENS, *SPECIAL_TOKENS]
    lacking = [token for token in wanted if tokenizer.token_to_id(token) is None]
    return tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in lacking])


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE trained on `texts`, with ChatML's and Eagle's special tokens as its last ids.

    vocab_size counts all of them; the tokenizer may have fewer where the texts give no more merges. It encodes every
    string: its alphabet is the 256 bytes. The same texts give the same tokenizer.

    Raises ValueError if vocab_size has no room for the bytes and the special tokens.
    """
    num_special = len(_TEXT_TOKENS) + len(SPECIAL_TOKENS)
    if vocab_size < 256 + num_special:
        raise ValueError(
            f"train_tokenizer: vocab_size is {vocab_size}; needs at least {256 + num_special}: "
            f"256 bytes and {num_special} special tokens."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - num_special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    add_special_tokens(tokenizer)
    return tokenizer


def counting_tokenizer() -> Tokenizer:
    """Counts text where no checkpoint's tokenizer is at hand: one token a piece of Qwen2.5's own word splitting.

    Exact for frame labels (their words are single tokens there, their digits one token each), a lower bound for rare
    words. All pieces have one id, so its ids say nothing.
    """
    words = Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.WordLevel({"word": 0}, unk_token="word"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(words, "isolated")
    add_special_tokens(tokenizer)
    return tokenizer
