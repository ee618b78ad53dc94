"""Every layout by golden strings, and the Jinja template against transformers' own machinery and our encoder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from eagle_model.data.chat import ChatEncoder
from eagle_model.data.rows import parse_sample
from eagle_model.data.sample import ImageRef, Sample
from eagle_model.data.templates import (
    DEFAULT_SYSTEM,
    TEMPLATES,
    TOOLS_END,
    TOOLS_START,
    TRAINING_SYSTEM,
    SampledVideo,
    Seen,
    TemplateName,
    chat_template,
    written,
)
from eagle_model.data.tiling import Grid
from tests.data.test_chat import encode_case, supervised_texts

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/templates.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}


@pytest.mark.parametrize("name", CASES)
def test_golden(tokenizer: Tokenizer, name: str) -> None:
    case = CASES[name]
    options = {name: case[name] for name in ("template", "system", "auto_thinking_prompt") if name in case}
    token_ids, labels = encode_case(ChatEncoder(tokenizer, **options), case)
    expected = re.sub(r"<IMG_CONTEXT>\*(\d+)", lambda m: "<IMG_CONTEXT>" * int(m[1]), case["text"])
    assert tokenizer.decode(token_ids, skip_special_tokens=False) == expected
    assert supervised_texts(tokenizer, labels) == case["supervised"]
    assert token_ids == tokenizer.encode(expected, add_special_tokens=False).ids


def test_every_layout_has_golden_strings_and_names_its_system() -> None:
    assert {case["template"] for case in CASES.values()} == set(TEMPLATES) == set(get_args(TemplateName))
    systems = {name: template.system for name, template in TEMPLATES.items()}
    assert systems == {"processor-1": DEFAULT_SYSTEM, "training-1": TRAINING_SYSTEM, "demo-1": DEFAULT_SYSTEM}


@pytest.mark.parametrize(
    ("name", "tenth", "eleventh"),
    [("processor-1", "tenth", "11-th"), ("training-1", "tenth", "11"), ("demo-1", "This is a", "This is a")],
)
def test_ordinals(name: TemplateName, tenth: str, eleventh: str) -> None:
    video = SampledVideo((0.0,), 2.0)
    for number, word in ((10, tenth), (11, eleventh)):
        for seen in (video, video._replace(frames_per_second=None)):
            ((text, num_tokens),), _ = written(
                TEMPLATES[name], seen, number=number, picture=number, is_only=True, tokens_per_tile=9
            )
            assert f"{word} video" in text
            assert num_tokens == 9


def test_a_medium_at_the_end_or_alone_leaves_no_white_space(tokenizer: Tokenizer) -> None:
    for name in TEMPLATES:
        for parts in (["a ", {"image": "a.png"}], [{"image": "a.png"}, " \n"], ["\n", {"image": "a.png"}]):
            row = {"messages": [{"role": "user", "content": parts}]}
            sample = parse_sample(row, root=Path(), where="t:1")
            ids = ChatEncoder(tokenizer, template=name).encode(sample, seen=[Grid(1, 1)], tokens_per_tile=1).token_ids_T
            text = tokenizer.decode(ids.tolist(), skip_special_tokens=False)
            assert text.endswith("</img><|im_end|>\n")
            assert re.search(r"user\n(a )?(<image 1>)?<img>", text)


# ---- the Jinja template


@pytest.fixture(scope="module")
def theirs(tokenizer: Tokenizer) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def expanded(text: str, sample: Sample, seen: list[Seen]) -> str:
    """`<image-k>` and `<video-k>` replaced, as the processor of the release does it."""
    of = {(isinstance(part, ImageRef), part.number): thing for part, thing in zip(sample.media, seen, strict=True)}

    def replace(match: re.Match) -> str:
        number = int(match[2])
        runs, end = written(
            TEMPLATES["processor-1"],
            of[match[1] == "image", number],
            number=number,
            picture=0,
            is_only=False,
            tokens_per_tile=3,
        )
        return "".join(f"{before}<img>{'<IMG_CONTEXT>' * num}</img>" for before, num in runs) + end

    return re.sub("<(image|video)-([0-9]+)>", replace, text)


WORDS = ["word", " ", "\n", "\n\n ", "don't", "\u00e9\U0001f985", "/nothink", "<think>", "<think>\n\n</think>\n\n"]
WORDS += ["<think>\nwhy\n</think>\n\n", "<|im_", "{{ x }}", "{% if %}", "<tool_call>", "'\"\\"]
TEXT = st.lists(st.sampled_from(WORDS), max_size=4).map("".join)
MEDIA = ["image", "image_url", "video", "video_url"]
PART = TEXT.map(lambda text: {"type": "text", "text": text}) | TEXT
PART |= st.sampled_from(MEDIA).map(lambda kind: {"type": kind, kind: "a.x"})
PART |= st.sampled_from(["image", "video"]).map(lambda kind: {kind: "a.x"}) | TEXT.map(lambda text: {"text": text})
PART |= st.just({"type": "image_url", "image_url": {"url": "a.x", "detail": "low"}})
CONTENT = TEXT | st.lists(PART, max_size=4)
SCALAR = st.none() | st.integers() | TEXT
JSON = SCALAR | st.lists(SCALAR, max_size=2) | st.dictionaries(TEXT, SCALAR, max_size=2)
FUNCTION = st.fixed_dictionaries(
    {"name": st.sampled_from(["f", "caf\u00e9"]), "arguments": st.dictionaries(TEXT, JSON, max_size=2)}
)
CALL = FUNCTION | FUNCTION.map(lambda function: {"id": "1", "type": "function", "function": function})
ANSWER = st.builds(
    lambda content, calls: {"role": "assistant", "content": content} | ({"tool_calls": calls} if calls else {}),
    TEXT | st.lists(TEXT.map(lambda text: {"type": "text", "text": text}), max_size=2),
    st.lists(CALL, max_size=2),
)
TURN = st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "tool"]), CONTENT)
CHAT = st.builds(
    lambda system, turns: [*({"role": "system", "content": text} for text in system), *turns],
    st.lists(TEXT, max_size=1),
    st.lists(TURN | ANSWER, min_size=1, max_size=6),
)
TOOLS = st.lists(st.fixed_dictionaries({"name": st.just("f"), "parameters": JSON}), max_size=2)


@settings(max_examples=60, deadline=None)
@given(messages=CHAT, tools=TOOLS, system=st.none() | TEXT, auto_thinking=st.booleans(), prompt=st.booleans())
def test_the_jinja_template_writes_what_the_encoder_does(
    tokenizer: Tokenizer,
    theirs: Any,
    messages: list[dict],
    tools: list[dict],
    system: str | None,
    auto_thinking: bool,
    prompt: bool,
) -> None:
    encoder = ChatEncoder(tokenizer, system=system, auto_thinking_prompt=auto_thinking)
    sample = parse_sample({"messages": messages, "tools": tools}, root=Path(), where="t:1")
    seen: list[Seen] = [
        Grid(1, 1) if isinstance(part, ImageRef) else SampledVideo((0.0, 1.5), 0.5) for part in sample.media
    ]
    ours = encoder.encode(sample, seen=seen, tokens_per_tile=3, generation_prompt=prompt).token_ids_T.tolist()
    template = chat_template(encoder.system, auto_thinking_prompt=auto_thinking)
    text = theirs.apply_chat_template(
        messages, tools=tools or None, chat_template=template, tokenize=False, add_generation_prompt=prompt
    )
    whole = expanded(text, sample, seen)
    assert tokenizer.decode(ours, skip_special_tokens=False) == whole
    assert ours == theirs(whole, add_special_tokens=False)["input_ids"]


QWEN_STYLE = r"""
{%- for m in messages %}
{%- if m.role == 'assistant' and m.tool_calls %}<|im_start|>assistant
{%- if m.content %}{{ '\n' + m.content }}{% endif %}
{%- for t in m.tool_calls %}{{ '\n<tool_call>\n{"name": "' + t.function.name + '", "arguments": ' }}
{{- t.function.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}
{%- elif m.role == 'tool' %}
{%- if messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}
{%- else %}{{ '<|im_start|>' + m.role + '\n' + m.content }}
{%- if m.role == 'system' and tools %}{{ START }}
{%- for t in tools %}{{ '\n' + t | tojson }}{% endfor %}{{ END }}{% endif %}
{{- '<|im_end|>\n' }}{% endif %}
{%- endfor %}
"""


def test_tools_are_written_as_a_qwen_template_does(tokenizer: Tokenizer, theirs: Any) -> None:
    """That template was written for this test, after the structure of Qwen2.5's."""
    calls = [{"function": {"name": name, "arguments": {"a": [1, "é"]}}} for name in ("f", "g")]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Both?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "two\nlines"},
        {"role": "assistant", "content": "Again.", "tool_calls": calls[:1]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "Done."},
    ]
    tools = [{"type": "function", "function": {"name": "f", "description": "ü"}}]
    sample = parse_sample({"messages": messages, "tools": tools}, root=Path(), where="t:1")
    ours = ChatEncoder(tokenizer).encode(sample, seen=[], tokens_per_tile=1).token_ids_T.tolist()
    whole = theirs.apply_chat_template(
        messages, tools=tools, chat_template=QWEN_STYLE, tokenize=False, START=TOOLS_START, END=TOOLS_END
    )
    assert tokenizer.decode(ours, skip_special_tokens=False) == whole
    assert ours == theirs(whole, add_special_tokens=False)["input_ids"]
