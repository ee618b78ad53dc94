"""Answers as OpenAI's objects, checked by its own client's types."""

import json

from openai.types.chat import ChatCompletion, ChatCompletionChunk

from eagle_model.infer.chat_answer import ChatAnswer, shown_json
from eagle_model.infer.request import Answer, Event, Shown, ShownMedium, TokenLogprob, Usage

MAKER = ChatAnswer("chatcmpl-1", "eagle", 1_700_000_000)
LOGPROBS = (TokenLogprob(5, "\u00e9", -0.5, ((5, "\u00e9", -0.5), (6, "\ud800", -2.0))),)
SHOWN = Shown((ShownMedium("/tmp/x/a.mp4", "video", 2, None, (0.0, 1.5)),), 2, 30, True, "Fewer frames.")


def test_a_whole_answer():
    answers = [
        Answer("a", (5,), LOGPROBS, "stop", Usage(30, 4, 16)),
        Answer("b", (6,), None, "cancelled", Usage(30, 2, 30)),
    ]
    got = ChatCompletion.model_validate(MAKER.whole(answers, SHOWN), strict=True)
    assert [choice.message.content for choice in got.choices] == ["a", "b"]
    assert [choice.finish_reason for choice in got.choices] == ["stop", "length"]  # what was cancelled was cut
    assert (got.usage.prompt_tokens, got.usage.completion_tokens, got.usage.total_tokens) == (30, 6, 36)
    assert got.usage.prompt_tokens_details.cached_tokens == 16
    (token,) = got.choices[0].logprobs.content
    assert (token.token, token.bytes, token.logprob) == ("\u00e9", [0xC3, 0xA9], -0.5)
    assert [other.logprob for other in token.top_logprobs] == [-0.5, -2.0]


def test_bytes_of_a_part_of_a_character_are_its_own():
    maker = ChatAnswer("chatcmpl-1", "eagle", 1, bytes_of={5: b"\xc3", 6: b"\xa9"}.__getitem__)
    parts = tuple(TokenLogprob(i, "\ufffd", -1.0, ((i, "\ufffd", -1.0),)) for i in (5, 6))
    chunk = ChatCompletionChunk.model_validate(maker.chunk(0, Event("\u00e9", (5, 6), parts, None)), strict=True)
    tokens = chunk.choices[0].logprobs.content
    assert bytes(byte for token in tokens for byte in token.bytes).decode() == "\u00e9"
    assert [token.top_logprobs[0].bytes for token in tokens] == [[0xC3], [0xA9]]


def test_chunks():
    first = MAKER.first(1, SHOWN)
    assert first["eagle"] == shown_json(SHOWN) and "eagle" not in MAKER.first(0, None)
    assert "/tmp" not in str(first)  # a path of this machine's is nobody's business
    chunks = [first, MAKER.chunk(1, Event("a", (5,), LOGPROBS, None)), MAKER.chunk(1, Event("", (), None, "stop"))]
    for event in (
        Event('a"\n\u00e9', (5,), None, None),
        Event("", (5,), None, None),
        Event("a", (5,), LOGPROBS, "stop"),
    ):
        assert MAKER.chunk_json(3, event) == json.dumps(MAKER.chunk(3, event), ensure_ascii=False)
    chunks.append(MAKER.usage([Usage(3, 2, 0), Usage(3, 1, 0)]))
    parsed = [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in chunks]
    assert [chunk.choices[0].delta.content for chunk in parsed[:3]] == ["", "a", None]
    assert (parsed[0].choices[0].index, parsed[2].choices[0].finish_reason) == (1, "stop")
    assert parsed[3].choices == [] and parsed[3].usage.total_tokens == 6
