"""Digests tell apart what is said, shown and learned; ids and folders do not count."""

from dataclasses import replace
from pathlib import Path

import pytest

from eagle_model.data.content import DIGEST_BYTES, content_digest
from eagle_model.data.sample import ImageRef, Sample, Turn, VideoRef

ANSWER = Turn("assistant", ("A dog.",))
SAMPLE = Sample("s", (Turn("user", (ImageRef(Path("a/x.png")), VideoRef(Path("b.mp4"), 1.0, 2.0), "What?")), ANSWER))


def test_ids_and_folders_do_not_count() -> None:
    moved = (ImageRef(Path("else/x.png")), *SAMPLE.turns[0].parts[1:])
    same = Sample("other", (Turn("user", moved), ANSWER), where="rows.jsonl:7")
    assert content_digest(same) == content_digest(SAMPLE)
    assert len(content_digest(SAMPLE)) == DIGEST_BYTES


@pytest.mark.parametrize(
    "parts",
    [
        (ImageRef(Path("y.png")), VideoRef(Path("b.mp4"), 1.0, 2.0), "What?"),
        (ImageRef(Path("x.png"), max_tiles=1), VideoRef(Path("b.mp4"), 1.0, 2.0), "What?"),
        (ImageRef(Path("x.png")), VideoRef(Path("b.mp4"), 1.0, 3.0), "What?"),
        (VideoRef(Path("b.mp4"), 1.0, 2.0), ImageRef(Path("x.png")), "What?"),
        (ImageRef(Path("x.png")), VideoRef(Path("b.mp4"), 1.0, 2.0), "Who?"),
    ],
)
def test_what_is_shown_and_said_counts(parts: tuple) -> None:
    assert content_digest(Sample("s", (Turn("user", parts), ANSWER))) != content_digest(SAMPLE)


def test_what_is_learned_and_may_be_called_counts() -> None:
    context = Sample("s", (SAMPLE.turns[0], replace(ANSWER, learned=False)))
    called = Sample("s", SAMPLE.turns, tools=("{}",))
    assert len({content_digest(sample) for sample in (SAMPLE, context, called)}) == 3
