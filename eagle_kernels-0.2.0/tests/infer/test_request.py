"""Text of tokens: whole characters, no control tokens, nothing of a stop string."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_model.infer.request import Event, Request, Shown, TextStream, Usage
from eagle_model.infer.sampling import Sampling
from tests.infer.small import processor

TEXT = "A caf\u00e9 \U0001f600, and <ref>two</ref> birds."


def said(ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    stream = TextStream(processor(), stop)
    pieces: list[str] = []
    for token_id in ids:
        text, is_stop = stream.add(token_id)
        pieces.append(text)
        if is_stop:
            return pieces, True
    return [*pieces, stream.end()], False


def ids_of(text: str) -> list[int]:
    return list(processor().encoder._encode_text(text))


def test_text_comes_as_soon_as_it_is_certain():
    pieces, is_stop = said(ids_of(TEXT))
    assert ("".join(pieces), is_stop) == (TEXT, False)
    assert sum(map(bool, pieces)) > 10
    assert "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize(
    ("stop", "want"),
    [
        ((" and",), "A caf\u00e9 \U0001f600,"),
        (("birds", "two"), "A caf\u00e9 \U0001f600, and <ref>"),
        (("birds?", "A d"), TEXT),
    ],
)
def test_a_stop_string_ends_it_and_is_not_said(stop, want):
    pieces, is_stop = said(ids_of(TEXT), stop)
    assert "".join(pieces) == want
    assert is_stop == (want != TEXT)


@settings(max_examples=60, deadline=None)
@given(numbers=st.lists(st.integers(0, 10_000), max_size=30), stop=st.text("ab ?.", min_size=1, max_size=3))
def test_nothing_of_a_stop_string_is_ever_said(numbers, stop):
    vocab_size = processor().tokenizer.get_vocab_size()
    ids = [number % vocab_size for number in numbers] + ids_of("ab ? a. b")
    whole = "".join(said(ids)[0])
    pieces, is_stop = said(ids, (stop,))
    assert "".join(pieces) == (whole[: whole.index(stop)] if is_stop else whole)
    assert is_stop == (stop in whole)


def test_a_listener_hears_what_came_and_what_comes():
    prompt = SimpleNamespace(shown=Shown((), 0, 3, False, ""))
    request, heard = Request(Sampling(), prompt, drive=lambda: False), []
    events = [Event("a", (1,), None, None), Event("b", (2,), None, None), Event("", (3,), None, "stop")]
    request._add(events[0], num_cached=1)
    request.listen(heard.append)
    assert heard == events[:1]
    for event in events[1:]:
        request._add(event, num_cached=1)
    assert heard == events and request.is_done and list(request.events()) == []
    answer = request.result()
    assert (answer.text, answer.token_ids, answer.finish_reason, answer.usage) == (
        "ab",
        (1, 2, 3),
        "stop",
        Usage(3, 3, 1),
    )
