"""Bodies of chat requests: OpenAI's fields, each with its range; what is not known is refused by name."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eagle_model.infer.chat_request import parse_chat
from eagle_model.infer.fetch import RequestError
from eagle_model.infer.sampling import Sampling

HELLO = [{"role": "user", "content": "Hello"}]


def parse(**fields):
    return parse_chat({"messages": HELLO, **fields})


def test_what_is_not_said_is_the_engines_default():
    asked = parse()
    assert asked.sampling == Sampling()
    assert (asked.n, asked.stream, asked.include_usage, asked.model) == (1, False, False, None)
    assert (asked.frames, asked.fps, asked.tiles) == (None, None, None)
    assert parse(temperature=None, stop=None, tools=None, n=None, logit_bias=None).sampling == Sampling()


def test_every_field_arrives():
    asked = parse(
        model="eagle", n=2, stream=True, stream_options={"include_usage": True}, max_completion_tokens=9, temperature=1,
        top_p=0.5, top_k=3, min_p=0.1, repetition_penalty=1.5, presence_penalty=-1, frequency_penalty=0.5, seed=-1,
        stop=["a", "b"], logit_bias={"5": -3}, logprobs=True, top_logprobs=2, frames=8, fps=0.5, tiles=4, user="u",
        metadata={"a": 1},
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}},
    )  # fmt: skip
    assert asked.sampling == Sampling(
        max_new_tokens=9, temperature=1.0, top_p=0.5, top_k=3, min_p=0.1, repetition_penalty=1.5, presence_penalty=-1.0,
        frequency_penalty=0.5, logit_bias=((5, -3.0),), stop=("a", "b"), seed=2**63 - 1, logprobs=2,
        json_schema='{"type": "array"}',
    )  # fmt: skip
    assert (asked.n, asked.stream, asked.include_usage, asked.model) == (2, True, True, "eagle")
    assert (asked.frames, asked.fps, asked.tiles) == (8, 0.5, 4)
    assert parse(top_k=-1, max_tokens=3, stop="x", logprobs=True).sampling == Sampling(
        max_new_tokens=3, stop=("x",), logprobs=0
    )
    assert json.loads(parse(response_format={"type": "json_object"}).sampling.json_schema) == {"type": "object"}


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"messages": []}, "messages", "needs a list of at least one message"),
        ({"messages": [3]}, "messages[0]", "needs an object with a role of"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]", "needs an object with a role of"),
        ({"messages": [{"role": "user"}]}, "messages[0]", "content is None; needs a string or a list"),
        ({"messages": [{"role": "user", "content": "x", "loss": 1}]}, "messages[0]", "unknown field 'loss'"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages[0].content[0]", "needs type text"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]", "needs a string"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": ""}}]}]},
            "messages[0].content[0]",
            "needs an object with url",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x", "fps": 1}}]}]},
            "messages[0].content[0]",
            "unknown field 'fps'",
        ),
        ({"temperature": 3}, "temperature", "needs a number from 0 to 2"),
        ({"temperature": "1"}, "temperature", "needs a number"),
        ({"temperature": True}, "temperature", "needs a number"),
        ({"top_p": 0}, "top_p", "needs a number from"),
        ({"max_tokens": 0}, "max_tokens", "needs a whole number of at least 1"),
        ({"max_tokens": 1.5}, "max_tokens", "needs a whole number"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "differ; give one"),
        ({"n": 17}, "n", "from 1 to 16"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"stop": [""]}, "stop", "needs a string"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "needs a token's id"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "from -100 to 100"),
        ({"logit_bias": {str(i): 0 for i in range(1025)}}, "logit_bias", "at most 1024"),
        ({"top_logprobs": 3}, "top_logprobs", "without logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
        ({"stream": "yes"}, "stream", "needs true or false"),
        ({"stream_options": {"wish": 1}}, "stream_options", "unknown field 'wish'"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "needs type text, json_object"),
        ({"tools": [{}]}, "tools", "calls none"),
        ({"tool_choice": "required"}, "tool_choice", "calls none"),
        ({"frames": 0}, "frames", "of at least 1"),
        ({"fps": float("nan")}, "fps", "of at least 0.001"),
        ({"wish": 1}, "wish", "is not known here"),
    ],
)
def test_what_is_wrong_is_named(fields, param, said):
    with pytest.raises(RequestError) as raised:
        parse(**fields)
    assert (raised.value.status, raised.value.param) == (400, param)
    assert said in raised.value.message


def test_an_answer_may_be_sent_back_as_it_came():
    said = {"role": "assistant", "content": "A cat.", "refusal": None, "tool_calls": [], "annotations": []}
    assert parse(messages=[*HELLO, said, *HELLO]).messages[1] == {"role": "assistant", "content": "A cat."}
    with pytest.raises(RequestError, match="unknown field 'tool_calls'"):
        parse(messages=[*HELLO, said | {"tool_calls": [{}]}, *HELLO])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["messages", "n", "stop", "logit_bias", "response_format", "stream_options", "seed", "top_k", "tools", "logprobs"]
)


@settings(max_examples=50, deadline=None)
@given(body=JSON | st.dictionaries(FIELDS, JSON | st.just(HELLO), max_size=5))
def test_any_json_is_a_request_or_a_sentence(body):
    with suppress(RequestError):
        assert parse_chat(body).n >= 1


def test_urls_become_paths(tmp_path: Path):
    Image.new("RGB", (4, 4)).save(tmp_path / "picture", "png")
    (tmp_path / "film").write_bytes(b"no picture")
    content = [
        {"type": "text", "text": "See"},
        {"type": "image_url", "image_url": {"url": "picture", "detail": "low"}},
        {"type": "video_url", "video_url": {"url": "film", "start": 1, "end": 2}},
        {"type": "file", "file": {"file_id": "picture"}},
        {"type": "file", "file": {"file_id": "film"}},
    ]
    messages = [{"role": "developer", "content": "Be brief.", "name": "x"}, {"role": "user", "content": content}]
    asked = parse(messages=messages)
    named = []

    def path_of(url, kind):
        named.append((url, kind))
        return tmp_path / url

    picture, film = str(tmp_path / "picture"), str(tmp_path / "film")
    assert asked.local_messages(path_of) == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "See"},
                {"type": "image", "image": picture, "detail": "low"},
                {"type": "video", "video": film, "start": 1, "end": 2},
                {"type": "image", "image": picture},
                {"type": "video", "video": film},
            ],
        },
    ]
    assert named == [("picture", "image"), ("film", "video"), ("picture", "video"), ("film", "video")]
