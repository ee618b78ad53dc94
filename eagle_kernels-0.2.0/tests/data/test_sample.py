"""Samples: what is shown, in its order, and parts that are none."""

from dataclasses import replace
from pathlib import Path

import pytest

from eagle_model.data.sample import ImageRef, Sample, Turn, VideoRef, shown

A, B, V = ImageRef(Path("a.png")), ImageRef(Path("b.png"), 2), VideoRef(Path("v.mp4"), 1.0, 2.0)


def test_media_come_in_the_order_shown() -> None:
    sample = Sample(
        "s", (Turn("user", ("See ", B, V, " now")), Turn("assistant", ("Yes.",)), Turn("observation", (A,)))
    )
    assert sample.media == (B, V, A)
    assert sample.images == (B, A)
    assert sample.videos == (V,)
    assert replace(sample, turns=sample.turns[2:]).media == (A,)
    assert [turn.text for turn in sample.turns] == ["See  now", "Yes.", ""]


def test_a_text_alone_is_no_tuple_of_parts() -> None:
    with pytest.raises(
        TypeError, match=r"Sample s: a turn's parts are 'Hi'; needs a tuple of texts, ImageRefs and Vid"
    ):
        Sample("s", (Turn("user", "Hi"),))  # type: ignore[arg-type]


def test_the_assistant_shows_nothing() -> None:
    with pytest.raises(ValueError, match="Sample s: an assistant's turn shows an image or a video; needs text alone"):
        Sample("s", (Turn("user", ("Hi",)), Turn("assistant", ("Look: ", A))))


def test_values_in_messages_are_cut() -> None:
    assert shown([1]) == "[1]"
    assert len(shown("x" * 1000)) == 80
