"""Rows, annotation files and recipes with anything in them: samples, or a DataError that says where; nothing else."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from eagle_model.batch import IGNORE_INDEX
from eagle_model.data.chat import ChatEncoder, SampledVideo
from eagle_model.data.recipe import read_recipe
from eagle_model.data.rows import parse_sample, read_samples
from eagle_model.data.sample import DataError, ImageRef, Sample
from eagle_model.data.tiling import Grid
from tests.data.conftest import TEXTS, chat_row, train_tokenizer
from tests.data.test_rows import ROWS
from tests.fuzz.mutations import altered, damaged
from tests.rounds import Rounds, by_rounds

TURNS = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "<image>?"}]},
    {"role": "assistant", "content": "No.", "loss": False},
    {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "v.mp4", "start": 1}}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Yes."}], "weight": 1},
]
CALLS = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": [1, "a"]}}}]
TOOLS = [
    {"role": "user", "content": "Both?"},
    {"role": "assistant", "content": None, "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "1", "content": "a"},
    {"role": "assistant", "content": "More.", "tool_calls": [{"name": "g", "arguments": "{}"}]},
    {"role": "tool", "name": "g", "content": [{"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}}]},
    {"role": "assistant", "content": "No."},
]
GOOD = [row for row, _ in ROWS.values()]
GOOD += [
    {"id": "a", "messages": TURNS, "score": 1},
    {"messages": TOOLS, "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
    {"messages": TOOLS, "tools": '[{"name": "f"}]'},
    chat_row(system="s", video="v.mp4", start=1, end_time=2, tools=None),
]
NAMES = ["id", "system", "image", "images", "video", "videos", "data", "messages", "conversations", "loss", "weight"]
NAMES += [
    "start",
    "end",
    "imgs",
    "tools",
    "fps",
    "type",
    "text",
    "role",
    "content",
    "from",
    "value",
    "path",
    "url",
    "x",
    "tool_calls",
    "detail",
]


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    tokenizer: Tokenizer = train_tokenizer(TEXTS, 400)
    return ChatEncoder(tokenizer)


def check_encoded(encoder: ChatEncoder, sample: Sample) -> None:
    """One turn's start and end for each turn, an image's tokens for each image, labels on what is learned alone."""
    seen = [Grid(1, 1) if isinstance(part, ImageRef) else SampledVideo((0.0, 1.0), 2.0) for part in sample.media]
    tokens = encoder.encode(sample, seen=seen, tokens_per_tile=3)
    has_system = sample.turns[0].role == "system"
    ends = int(tokens.token_ids_T.eq(encoder.turn_end_id).sum())
    roles = [turn.role for turn in sample.turns]
    num_joined = sum(pair == ("tool", "tool") for pair in pairwise(roles))  # what tools say is one turn
    assert ends == len(sample.turns) + (not has_system) - num_joined
    assert tokens.visual_positions_N.numel() == 3 * (len(sample.images) + 2 * len(sample.videos))
    learned = sum(turn.role == "assistant" and turn.learned for turn in sample.turns)
    assert int(tokens.labels_T.eq(encoder.turn_end_id).sum()) == learned
    assert bool(learned) or bool(tokens.labels_T.eq(IGNORE_INDEX).all())


@by_rounds(1500)
def test_rows(rounds: Rounds, encoder: ChatEncoder) -> None:
    rng, num_read = random.Random(rounds.seed), 0
    for _ in rounds:
        row = altered(rng.choice(GOOD), rng, NAMES)
        try:
            sample = parse_sample(row, root=Path("/data"), where="f:1", allow_outside_root=rng.random() < 0.5)
        except DataError as error:
            assert str(error).startswith("f:1: "), row  # noqa: PT017
            assert len(str(error)) < 1000, row  # noqa: PT017
        else:
            num_read += 1
            check_encoded(encoder, sample)
    assert rounds.num // 10 < num_read < rounds.num  # else the damage is too much, or none


@by_rounds(300)
def test_files(rounds: Rounds, tmp_path: Path) -> None:
    """As bytes: what is cut, doubled or no UTF-8 any more."""
    rng, num_read = random.Random(rounds.seed), 0
    texts = [json.dumps(row).encode() for row in GOOD]
    lines = [b"\n".join(rng.sample(texts, 3)) for _ in range(8)]
    lists = [b"[" + b",\n".join(rng.sample(texts, 3)) + b"]" for _ in range(8)]
    (tmp_path / "a.jsonl").write_bytes(lines[0])
    fields = {"root": ".", "annotation": ["a.jsonl"], "repeat_time": 1.5, "weight": 1, "length": None}
    recipes = [json.dumps({"s": fields, "t": {"root": ".", "annotation": "a.jsonl"}}).encode()]
    for _ in rounds:
        name, files = rng.choice([("b.jsonl", lines), ("b.json", lists), ("recipe.json", recipes)])
        (tmp_path / name).write_bytes(damaged(rng.choice(files), rng, files))
        try:
            for source in read_recipe(tmp_path / name):
                for sample in read_samples(source, on_bad_row=lambda where, error: None):
                    num_read += sample.where.startswith(str(tmp_path))
        except DataError as error:
            assert str(tmp_path) in str(error)  # noqa: PT017
            assert len(str(error)) < 2000  # noqa: PT017
    assert num_read > rounds.num // 4
