"""What the first process does for all: its result everywhere, its error everywhere, once."""

from pathlib import Path

import pytest

from eagle_model.train.first import FirstFailed, on_all, on_first
from eagle_model.train.layout import Layout
from eagle_model.train.ranks import start
from tests.ranks import run


def test_alone_it_is_a_plain_call():
    ranks, given = start(Layout(), "cpu"), object()
    assert on_first(ranks, lambda: given) is given
    with pytest.raises(LookupError, match="nothing"):
        on_first(ranks, lambda: {}["nothing"])


def of_several(folder):
    ranks, done = start(Layout(shard=2), "cpu"), []
    results = [on_first(ranks, lambda: done.append(1) or {"step": 7}), on_first(ranks, lambda: None)]
    try:
        on_first(ranks, lambda: Path(folder, "none").read_text())
    except (OSError, FirstFailed) as error:
        results.append(f"{type(error).__name__}: {error}")
    return [len(done), *results]


def test_the_others_take_its_word(tmp_path):
    first, other = run(of_several, 2, str(tmp_path))
    assert first[:3] == [1, {"step": 7}, None] and first[3].startswith("FileNotFoundError: ")
    assert other[:3] == [0, {"step": 7}, None]
    assert other[3] == f"FirstFailed: the first process failed: {first[3]}"


def of_each(fails):
    ranks = start(Layout(shard=2), "cpu")

    def do():
        if ranks.rank in fails:
            raise LookupError(f"nothing for {ranks.rank}")
        return [ranks.rank]

    try:
        return on_all(ranks, do, otherwise=OSError)
    except (LookupError, OSError) as error:
        return f"{type(error).__name__}: {error}"


def test_what_fails_on_one_fails_on_all():
    assert run(of_each, 2, []) == [[0], [1]]
    assert run(of_each, 2, [1]) == ["OSError: process 1: nothing for 1", "LookupError: nothing for 1"]
    assert run(of_each, 2, [0, 1]) == ["LookupError: nothing for 0", "LookupError: nothing for 1"]
