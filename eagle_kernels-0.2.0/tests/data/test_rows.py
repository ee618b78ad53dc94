"""Every form of a row, its tags, confinement of paths, and where errors say they are."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle_model.data.recipe import read_recipe
from eagle_model.data.rows import parse_sample, read_samples
from eagle_model.data.sample import DataError, ImageRef, Sample, Turn, VideoRef
from tests.data.conftest import chat_row

ROOT = Path("/data")


def parse(row: object, **kwargs: object) -> Sample:
    return parse_sample(row, root=ROOT, where="rows.jsonl:7", **kwargs)  # type: ignore[arg-type]


def image(name: str, number: int = 1) -> ImageRef:
    return ImageRef(ROOT / name, number)


def video(name: str, start: float | None = None, end: float | None = None, number: int = 1) -> VideoRef:
    return VideoRef(ROOT / name, start, end, number)


def user(content: object) -> list[dict]:
    return [{"role": "user", "content": content}, {"role": "assistant", "content": "Yes."}]


# ---- rows

ROWS = {  # a row, and the parts of its first turn
    "text alone": (chat_row("Hi"), ("Hi",)),
    "no text": (chat_row(""), ()),
    "image: str": (chat_row("<image>\nWhat?", image="a.png"), (image("a.png"), "\nWhat?")),
    "image: list": (
        chat_row("<image> or <image>?", image=["a.png", "d/b.png"]),
        (image("a.png"), " or ", image("d/b.png", 2), "?"),
    ),
    "image: none tagged": (
        chat_row("Compare.", image=["a.png", "b.png"]),
        (image("a.png"), image("b.png", 2), "Compare."),
    ),
    "image-k in any order": (
        chat_row("<image-2> then <image-1>", image=["a.png", "b.png"]),
        (image("b.png", 2), " then ", image("a.png")),
    ),
    "image-k, two missing": (
        chat_row("after <image-2>", image=["a.png", "b.png", "c.png"]),
        (image("a.png"), image("c.png", 3), "after ", image("b.png", 2)),
    ),
    "the same file twice": (
        chat_row("<image><image>", image=["a.png", "a.png"]),
        (image("a.png"), image("a.png", 2)),
    ),
    "video: str": (chat_row("<video>What?", video="v.mp4"), (video("v.mp4"), "What?")),
    "video: clip": (
        chat_row("What?", video={"path": "v.mp4", "start": 1, "end": 2.5}),
        (video("v.mp4", 1.0, 2.5), "What?"),
    ),
    "data: in the order listed": (
        chat_row(
            "Both?",
            data=[
                {"type": "video", "video_list": [{"video": "v.mp4", "start_time": 3.0, "end_time": None}]},
                {"type": "image", "image_list": ["a.png"]},
            ],
        ),
        (video("v.mp4", 3.0), image("a.png"), "Both?"),
    ),
    "messages: strings": ({"messages": user("Hi")}, ("Hi",)),
    "messages: OpenAI parts": (
        {
            "messages": user(
                [
                    {"type": "text", "text": "See "},
                    {"type": "image_url", "image_url": {"url": "a.png"}},
                    {"type": "text", "text": " and "},
                    {"type": "video_url", "video_url": {"url": "file://v.mp4"}},
                ]
            )
        },
        ("See ", image("a.png"), " and ", video("v.mp4")),
    ),
    "messages: image and video parts": (
        {
            "messages": user(
                [
                    {"type": "video", "video": "v.mp4", "video_start": 0, "video_end": 4},
                    {"type": "image", "image": "a.png"},
                    {"type": "text", "text": "?"},
                ]
            )
        },
        (video("v.mp4", 0.0, 4.0), image("a.png"), "?"),
    ),
    "messages: every spelling of a part": (
        {
            "messages": user(
                [
                    "See ",
                    {"type": "image", "url": "a.png"},
                    {"type": "image", "path": "b.png", "text": None},
                    {"type": "image_url", "image_url": "c.png"},
                    {"type": "image", "image_url": {"url": "d.png", "detail": "auto"}},
                    {"image": "e.png"},
                    {"type": "video", "video_url": {"url": "v.mp4"}},
                    {"video": "w.mp4"},
                    {"text": "?"},
                ]
            )
        },
        (
            *("See ", image("a.png"), image("b.png", 2), image("c.png", 3), image("d.png", 4), image("e.png", 5)),
            *(video("v.mp4"), video("w.mp4", number=2), "?"),
        ),
    ),
    "messages: low detail is one tile": (
        {
            "messages": user(
                [
                    {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}},
                    {"type": "image_url", "image_url": {"url": "b.png", "detail": "high"}},
                ]
            )
        },
        (ImageRef(ROOT / "a.png", 1, 1), image("b.png", 2)),
    ),
    "messages: parts that name no file show what is listed": (
        {
            "messages": user([{"type": "image"}, " or <image> ", {"type": "video"}, {"type": "image"}]),
            "images": ["a.png", "b.png"],
            "videos": ["v.pdf"],
        },
        (image("a.png"), " or <image> ", video("v.pdf"), image("b.png", 2)),
    ),
    "messages: a tag beside parts is text": (
        {
            "messages": user(
                [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Here <image> it \\<image> is"}]
            )
        },
        (image("a.png"), "Here <image> it \\<image> is"),
    ),
    "messages: a tag without media is text": (
        {"messages": user("In HTML, is <video> like <img>?")},
        ("In HTML, is <video> like <img>?",),
    ),
    "messages: ms-swift lists": (
        {"messages": user("<image><video>What is \\<image>?"), "images": ["a.png"], "videos": ["v.mp4"]},
        (image("a.png"), video("v.mp4"), "What is <image>?"),
    ),
    "escaped": (
        chat_row(r"<image> \<image>, \<video-2> and \\\<image>.", image="a.png"),
        (image("a.png"), r" <image>, <video-2> and \<image>."),
    ),
    "a backslash before an image": (chat_row(r"C:\\<image> \n", image="a.png"), ("C:\\", image("a.png"), r" \n")),
    "a clip that the row gives": (
        chat_row("<video>What?", video="v.mp4", video_start=0.5, end_time=2),
        (video("v.mp4", 0.5, 2.0), "What?"),
    ),
    "times that belong to no video": (chat_row("Hi", start=3, end="later"), ("Hi",)),
    "escaped, without media": (chat_row(r"What is \<image>?"), ("What is <image>?",)),
}


@pytest.mark.parametrize("name", ROWS)
def test_every_form_of_a_row(name: str) -> None:
    row, parts = ROWS[name]
    sample = parse(row)
    assert sample.turns[0] == Turn("user", parts)
    assert sample.media == tuple(part for part in parts if not isinstance(part, str))


def with_nulls(value: object) -> object:
    """As Hugging Face's `datasets` writes rows: every object has the fields of all of its kind."""
    if isinstance(value, list):
        return [with_nulls(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    fields = ["id", "system", "image", "images", "video", "videos", "data", "tools", "audios", "loss", "start", "crop"]
    fields += ["conversations", "messages", "text", "image_url", "path", "bytes", "video_list", "lmdb_file", "from"]
    return dict.fromkeys(fields) | {name: with_nulls(entry) for name, entry in value.items()}


@pytest.mark.parametrize("name", ROWS)
def test_null_fields_count_as_absent_everywhere(name: str) -> None:
    row, _ = ROWS[name]
    assert parse(with_nulls(row)).turns == parse(row).turns


@pytest.mark.parametrize("key", ["images", "videos", "video", "data"])
def test_a_tag_beside_an_empty_list_has_lost_its_medium(key: str) -> None:
    row = {"messages": user("<video>What is it?"), key: []}
    with pytest.raises(DataError, match="the text has 1 <video> but the row lists 0 videos; the numbers must match"):
        parse(row)
    assert parse(row | {key: None}).turns == parse({"messages": row["messages"]}).turns


def test_base64_in_the_place_of_a_path_is_refused_in_a_line() -> None:
    for start in ("/9j/4AAQSkZJRg", "iVBORw0KGgo"):
        with pytest.raises(DataError, match=r"50,0\d\d characters, which is no path; if it is base64") as refused:
            parse(chat_row(image=start + "A" * 50_000))
        assert len(str(refused.value)) < 200


def test_a_rows_system_is_its_first_turn() -> None:
    for row in (chat_row(system="Be <image> brief."), {"messages": user("Hi"), "system": "Be <image> brief."}):
        assert parse(row).turns[0] == Turn("system", ("Be <image> brief.",))
        assert len(parse(row).turns) == 3
    assert parse(chat_row(system=" ")).turns == parse(chat_row()).turns


@pytest.mark.parametrize("name", ["loss", "train", "weight"])
def test_turns_may_be_context_alone(name: str) -> None:
    for on, off in ((True, False), (1, 0), (1.0, 0.0)):
        turns = [
            {"role": "user", "content": "q", name: off},
            {"role": "assistant", "content": "WRONG", name: off},
            {"role": "user", "content": "no"},
            {"role": "assistant", "content": [{"type": "text", "text": "right"}], name: on},
        ]
        assert [turn.learned for turn in parse({"messages": turns}).turns] == [False, False, True, True]
        turns = [{"from": turn["role"], "value": "x", name: turn.get(name)} for turn in turns]
        assert [turn.learned for turn in parse({"image": "a", "conversations": turns}).turns] == [
            False, False, True, True,
        ]  # fmt: skip


def test_tools_their_calls_and_what_they_answer() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    turns = [
        {"role": "user", "content": "Both?"},
        {
            "role": "assistant",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}],
            "loss": False,
        },
        {"role": "tool", "tool_call_id": "1", "name": "f", "content": [{"type": "image", "image": "a.png"}]},
        {"role": "assistant", "content": "Wait.", "tool_calls": [{"name": "g", "arguments": '{"a": "\u00e9"}'}]},
        {"role": "tool", "content": "no"},
        {"role": "assistant", "content": "No.", "tool_calls": []},
    ]
    for given_tools in (tools, json.dumps(tools)):
        sample = parse({"messages": turns, "tools": given_tools})
        assert sample.tools == ('{"type": "function", "function": {"name": "f"}}',)
        assert sample.unused_fields == ()
    assert [turn.role for turn in sample.turns] == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    called = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    assert sample.turns[1] == Turn("assistant", (called,), learned=False)
    assert sample.turns[2].parts == (image("a.png"),)
    called = '<tool_call>\n{"name": "g", "arguments": {"a": "\u00e9"}}\n</tool_call>'
    assert sample.turns[3].parts == ("Wait.\n" + called,)
    told = parse({"conversations": [{"from": "human", "value": "q"}, {"from": "tool", "value": "r"}]})
    assert told.turns[1] == Turn("tool", ("r",))


def test_fields_that_change_nothing_are_told() -> None:
    sample = parse(chat_row(image="a.png", score=0.5, origin="web", tools=[], audios=None, url="http://x/a.png"))
    assert sample.unused_fields == ("score", "origin", "tools", "url")
    assert parse(chat_row(start=3)).unused_fields == ("start",)
    assert parse(chat_row(video="v.mp4", start=3)).unused_fields == ()


def test_roles_ids_and_fields_that_are_not_ours() -> None:
    froms = ["system", "human", "gpt", "observation", "gpt"]
    sample = parse({"id": 12, "score": 0.5, "conversations": [{"from": f, "value": f} for f in froms]})
    assert [turn.role for turn in sample.turns] == ["system", "user", "assistant", "observation", "assistant"]
    assert sample.id == "12"
    assert parse(chat_row()).id == parse(chat_row(id=None)).id == "rows.jsonl:7"


def test_a_number_without_end_is_text() -> None:
    text = f"<image-{'1' * 5000}>"  # int() refuses so many digits
    assert parse(chat_row(text)).turns[0].parts == (text,)


def test_order_of_tiles_is_the_order_of_the_text_and_assistants_text_is_text() -> None:
    sample = parse(
        {
            "image": ["a.png", "b.png"],
            "video": "v.mp4",
            "conversations": [
                {"from": "human", "value": "<image-2> <video>"},
                {"from": "gpt", "value": r"In <image> I see \<video-3>."},
                {"from": "observation", "value": "<image-1>"},
                {"from": "gpt", "value": "Done."},
            ],
        }
    )
    assert sample.media == (image("b.png", 2), video("v.mp4"), image("a.png", 1))
    assert sample.turns[1].parts == (r"In <image> I see \<video-3>.",)
    assert sample.turns[2].parts == (image("a.png"),)


@given(
    st.lists(st.sampled_from(["a", " ", "\\", "<", ">", "<image>", "<image-1>", "<video-2>", "\\<video>"]), max_size=9)
)
def test_any_text_can_be_said_by_escaping_its_tags(pieces: list[str]) -> None:
    """As an exporter does it: where a tag stands in a text, double the backslashes before it and add one."""
    text = "".join(pieces)
    escaped = re.sub(r"(\\*)(<(?:image|video)(?:-[0-9]+)?>)", r"\1\1\\\2", text)
    assert parse(chat_row(escaped)).turns[0].text == text
    assert parse({"messages": user(text)}).turns[0].text == text


def deep(levels: int) -> list:
    nested: list = ["x"]
    for _ in range(levels):
        nested = [nested]
    return nested


def calling(calls: object) -> dict:
    return {"messages": [*user("q"), {"role": "assistant", "content": None, "tool_calls": calls}]}


BAD_ROWS = {
    "a list": ([], "the row is []; needs an object."),
    "no turns": ({}, "neither of 'conversations' and 'messages'"),
    "both": (chat_row(messages=[]), "both of 'conversations' and 'messages'"),
    "empty": ({"conversations": []}, "the conversation is []; needs a list of at least one turn."),
    "no value": ({"conversations": [{"from": "human"}]}, "needs an object with 'from' and 'value'"),
    "role": ({"conversations": [{"from": "bot", "value": ""}]}, "from is 'bot'; needs one of system, human, user, gpt"),
    "late system": (
        {"conversations": [{"from": "human", "value": ""}, {"from": "system", "value": ""}]},
        "turn 2 is a system turn; only the first may be",
    ),
    "text": (chat_row(question=3), "a turn's text is 3; needs a string."),  # type: ignore[arg-type]
    "surrogate": (chat_row("\ud800"), "half of a surrogate pair"),
    "id": (chat_row(id=[1]), "id is [1]; needs a string or an integer."),
    "too many": (chat_row("<image><image>", image="a.png"), "the text has 2 <image> but the row lists 1 images"),
    "too few": (chat_row("<image>", image=["a.png", "b.png"]), "the text has 1 <image> but the row lists 2 images"),
    "no media": (
        chat_row("<video>"),
        r"lists 0 videos; the numbers must match. (Where the text means no video, write \<video>.)",
    ),
    "listed and parts": (
        {"messages": user([{"type": "image", "image": "a"}]), "images": ["b"]},
        "media are listed beside the messages and are parts of them too; needs one of both.",
    ),
    "assistant's part": (
        {"messages": [{"role": "assistant", "content": [{"type": "image", "image": "a"}]}]},
        "a part of the assistant's is {'type': 'image', 'image': 'a'}; needs type text",
    ),
    "k too large": (chat_row("<image-2>", image="a.png"), "the text names <image-2> but the row lists 1 images."),
    "k zero": (chat_row("<image-0>", image="a.png"), "the text names <image-0> but the row lists 1 images."),
    "k twice": (chat_row("<image-1> <image-1>", image="a.png"), "the text names <image-1> twice"),
    "two forms": (chat_row("<image-1> <image>", image=["a", "b"]), "both <image> and <image-k>; use one form"),
    "nobody to show": (
        {"image": "a.png", "conversations": [{"from": "gpt", "value": "A dog."}]},
        "there is no user (human) turn to show <image-1> in.",
    ),
    "image and images": (chat_row(image="a", images=["b"]), "both 'image' and 'images'"),
    "data and image": (chat_row(image="a", data=[]), "both 'data' and 'image'"),
    "data type": (chat_row(data=[{"type": "audio"}]), "needs an object of type 'image' or 'video'"),
    "data field": (chat_row(data=[{"type": "image", "image_list": [], "crop": 1}]), "unknown field 'crop'"),
    "lmdb": (chat_row(image={"lmdb_file": "x", "lmdb_key": "y"}), "in LMDB; `eagle data convert` writes it"),
    "image field": (chat_row(image={"path": "a.png", "scale": 2}), "an image has the unknown field 'scale'"),
    "video field": (chat_row(video={"video": "v.mp4", "fps": 2}), "a video has the unknown field 'fps'; known are"),
    "no path": (chat_row(video={"start": 1}), "needs exactly one of the fields 'path', 'video' and 'url'"),
    "number": (chat_row(image=3), "image is 3; needs a path."),
    "frames": ({"messages": user([{"type": "video", "video": ["a", "b"]}])}, "needs the path of one file"),
    "time": (chat_row(video={"video": "v", "start": "0:10"}), "start is '0:10'; needs seconds"),
    "too large for a float": (chat_row(video={"video": "v", "start": 10**400}), "start is 1000000"),
    "NaN": (chat_row(video={"video": "v", "end": float("nan")}), "end is nan; needs seconds"),
    "two times": (chat_row(video={"video": "v", "start": 1, "start_time": 2}), "both 'start_time' and 'start'"),
    "backwards": (chat_row(video={"video": "v", "start": 5, "end": 5}), "ends at 5 s, not after its start at 5 s"),
    "part": ({"messages": user([{"type": "audio"}])}, "needs type text, image, image_url, video or video_url"),
    "part field": ({"messages": user([{"type": "text", "text": "", "x": 1}])}, "a text part has the unknown field 'x'"),
    "a turn's field": (
        {"messages": [{"role": "user", "content": "q", "images": ["a.png"]}]},
        "a turn has the unknown field 'images'; known are content, loss, role, train, weight.",
    ),
    "tool calls of a user": (
        {"messages": [{"role": "user", "content": "q", "tool_calls": [{"name": "f"}]}]},
        "a turn has the unknown field 'tool_calls'",
    ),
    "tool calls: no list": (calling({"name": "f"}), "tool_calls is {'name': 'f'}; needs a list of calls."),
    "tool calls: no name": (
        calling([{"function": {"arguments": {"a": 1}}}]),
        "a tool call is {'function': {'arguments': ",
    ),
    "tool calls: arguments": (calling([{"name": "f", "arguments": [1]}]), "needs {'function': {'name': ..., "),
    "tool calls: JSON": (
        calling([{"name": "f", "arguments": "{x"}]),
        "tool call is '{x', which is not JSON: Expecting",
    ),
    "tool calls: a field": (calling([{"function": {"name": "f", "args": 1}}]), "function has the unknown field 'args'"),
    "tool calls: surrogate": (calling([{"name": "f", "arguments": {"a": "\ud800"}}]), "half of a surrogate pair"),
    "no content": ({"messages": [{"role": "assistant", "content": None, "tool_calls": []}]}, "'role' and 'content'"),
    "tools": (chat_row(tools={"name": "f"}), "tools is {'name': 'f'}; needs a list of objects"),
    "tools: JSON": (chat_row(tools="[{"), "tools is '[{', which is not JSON: Expecting"),
    "detail": (
        {"messages": user([{"type": "image_url", "image_url": {"url": "a", "detail": "most"}}])},
        "detail of an image is 'most'; needs low (one tile), high or auto.",
    ),
    "detail of a video": (
        {"messages": user([{"type": "video_url", "video_url": {"url": "a", "detail": "low"}}])},
        "a video has the unknown field 'detail'",
    ),
    "base64": (
        {"messages": user([{"type": "image", "base64": "AA"}])},
        "image is base64; `eagle data convert` writes it",
    ),
    "unnamed and none listed": (
        {"messages": user([{"type": "image"}])},
        "a part of type image names no file, and the row's images list none for it",
    ),
    "more listed than shown": (
        {"messages": user([{"type": "image"}]), "images": ["a", "b"]},
        "the row lists 2 media, but parts of its messages show 1.",
    ),
    "a part of two kinds": ({"messages": user([{"image": "a", "text": "b"}])}, "needs type text, image, image_url"),
    "a part that is a number": ({"messages": user([3])}, "a part is 3; needs type text, image"),
    "loss": ({"messages": [{"role": "assistant", "content": "", "loss": 0.5}]}, "loss of a turn is 0.5; needs true or"),
    "loss of a user": ({"messages": [{"role": "user", "content": "", "loss": 1}]}, "only the assistant's are learned."),
    "loss and weight": (
        {"messages": [{"role": "assistant", "content": "", "loss": 1, "weight": 1}]},
        "a turn has both 'loss' and 'weight'; needs one of them.",
    ),
    "two systems": (
        {"system": "a", "messages": [{"role": "system", "content": "a"}]},
        "the row has 'system' and a system turn too; needs one of them.",
    ),
    "system": (chat_row(system=["a"]), "a turn's text is ['a']; needs a string."),
    "two clips": (chat_row(video={"video": "v", "end": 2}, start=1), "the row has 'start', and 1 videos or a clip of"),
    "a clip of two": (chat_row(video=["v", "w"], start=1), "the row has 'start', and 2 videos or a clip of its own"),
    "a clip beside parts": (
        {"messages": user([{"type": "video", "video": "v"}]), "video_end": 2},
        "the row has 'video_end', but its videos are parts of messages; write it there.",
    ),
    "a clip backwards": (chat_row(video="v", start=1, end=1), "the clip of v ends at 1 s, not after its start at 1 s."),
    "near miss": (chat_row(image_path="a.png"), "the row has the field 'image_path': media are read from 'image', "),
    "nested images": (chat_row(images=[["a.png"]]), "image is ['a.png']; needs a path."),
    "nested deeper than Python goes": (chat_row(extra=deep(3000)), "nested too deep."),
    "a deep medium": (chat_row(image=deep(3000)), "needs a path."),
    "content": ({"messages": user(None)}, "a turn is {'role': 'user', 'content': None}; needs an object with"),
}


def test_rows_made_to_be_slow_take_no_longer() -> None:
    """Each of these was quadratic: minutes, at a megabyte."""
    started = time.process_time()
    parse(chat_row("\\" * 1_000_000))
    parse(chat_row("".join(f"<image-{k}>" for k in range(1, 30_001)), image=["a.png"] * 30_000))
    with pytest.raises(DataError, match="and 29980 more in"):
        parse({"image": ["a.png"] * 30_000, "conversations": [{"from": "gpt", "value": "x"}]})
    assert time.process_time() - started < 20  # about 2 on an idle core


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_say_where_and_why(name: str) -> None:
    row, message = BAD_ROWS[name]
    with pytest.raises(DataError) as error:
        parse(row)
    assert str(error.value).startswith("rows.jsonl:7: ")
    assert message in str(error.value)


# ---- paths


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../x.png",
        "a/../../x.png",
        "file:///etc/passwd",
        "/data/../x.png",
        "/data2/x.png",
        "/data/d/a.png",
    ],
)
def test_paths_out_of_the_root_are_refused_unless_allowed(path: str) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:7: image .* leaves the root '/data'\. Give a path inside it"):
        parse(chat_row(image=path))
    allowed = parse(chat_row(image=path), allow_outside_root=True)
    assert allowed.images[0].path == ROOT / path.removeprefix("file://")


@pytest.mark.parametrize("url", ["http://host/a.png", "https://host/a.png", "s3://b/a.png", "data:image/png;base64,AA"])
def test_urls_are_always_refused(url: str) -> None:
    for allow in (False, True):
        with pytest.raises(DataError, match=r"is the URL .*; nothing is fetched"):
            parse(chat_row(image=url), allow_outside_root=allow)


def test_links_may_not_lead_out_of_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "inside").mkdir(parents=True)
    (root / "real.png").write_bytes(b"")
    (tmp_path / "secret.png").write_bytes(b"")
    (root / "fine.png").symlink_to(root / "real.png")
    (root / "file.png").symlink_to(tmp_path / "secret.png")
    (root / "folder").symlink_to(tmp_path)
    (root / "loop.png").symlink_to(root / "loop.png")

    def path(name: str, **kwargs: bool) -> Path:
        return parse_sample(chat_row(image=name), root=root, where="f:1", **kwargs).images[0].path

    assert path("fine.png") == root / "fine.png"
    for name in ("file.png", "folder/secret.png"):
        with pytest.raises(DataError, match=r"f:1: image .* is a link to .*secret\.png, outside the root"):
            path(name)
        assert path(name, allow_outside_root=True) == root / name
    (tmp_path / "link-to-root").symlink_to(root)  # the root itself may be a link
    linked = parse_sample(chat_row(image="real.png"), root=tmp_path / "link-to-root", where="f:1")
    assert linked.images[0].path.name == "real.png"


# ---- files


def write(folder: Path, name: str, text: str | bytes) -> Path:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / name


def samples_of(path: Path) -> list[Sample]:
    return [sample for source in read_recipe(path) for sample in read_samples(source)]


def test_jsonl_and_json_list_are_recipes_of_one_source(tmp_path: Path) -> None:
    rows = [chat_row(f"q{i}", id=f"s{i}", image="a.png") for i in range(3)]
    lines = write(tmp_path, "rows.jsonl", "\ufeff" + "\n\n".join(map(json.dumps, rows)))
    listed = write(tmp_path, "rows.json", json.dumps(rows, indent=1))
    assert samples_of(lines) == samples_of(listed)
    assert [s.id for s in samples_of(listed)] == ["s0", "s1", "s2"]
    assert samples_of(listed)[0].images[0].path == tmp_path / "a.png"
    assert samples_of(write(tmp_path, "empty.json", "[ ]")) == []


GOOD = json.dumps(chat_row())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.jsonl", f'{GOOD}\n\n{{"a": \n{GOOD}', ":3: not JSON: Expecting value at column 7."),
        ("r.jsonl", f"{GOOD}\n[1]\n", ":2: the row is [1]; needs an object."),
        ("r.jsonl", f"{GOOD}\n{GOOD[:-1]}, }}\n", ":2: not JSON: "),
        ("r.jsonl", GOOD.encode() + b'\n{"id": "\xe9"}\n', ":2: not UTF-8: byte 9 of the line is wrong."),
        ("r.jsonl", "[" * 100_000, ":1: nested too deep."),
        ("r.jsonl", f'{GOOD}\n{{"id": {"1" * 5000}}}', ":2: not JSON that can be read: Exceeds the limit"),
        ("r.json", f'[{GOOD},\n{{"id": {"1" * 5000}}}]', ":2: not JSON that can be read: Exceeds the limit"),
        ("r.json", f"[{GOOD},\n" + "[" * 100_000, ":2: nested too deep."),
        ("r.jsonl", '{"conversations": [{"from": "human", "value": "?"}]}', ":1: no turn of the assistant (gpt)"),
        ("r.json", f"[\n{GOOD},\n{GOOD}\n{GOOD}]", ":4: not JSON: Expecting ',' or ']' at column 1."),
        ("r.json", f"[{GOOD},\n\n{{}}]", ":3: the row has neither of"),
        ("r.json", f"[{GOOD},\n {{'a'}}]", ":2: not JSON: "),
        ("r.json", f"[{GOOD}]\nmore", ":2: not JSON: Extra data at column 1."),
        ("r.json", f"[{GOOD}", ":1: not JSON: Expecting ',' or ']'"),
    ],
)
def test_malformed_annotations_name_the_line(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    annotation = write(tmp_path, name, text)
    recipe = write(tmp_path, "recipe.json", json.dumps({"s": {"root": ".", "annotation": name}}))
    for path in (recipe, annotation):  # the annotation is a recipe by itself
        with pytest.raises(DataError) as error:
            samples_of(path)
        assert str(error.value).startswith(f"{annotation}{message}")


def test_bad_rows_can_be_left_out_and_are_told(tmp_path: Path) -> None:
    lines = [GOOD, "{", json.dumps(chat_row("<image>")), GOOD]
    (source,) = read_recipe(write(tmp_path, "r.jsonl", "\n".join(lines)))
    bad: list[tuple[str, str]] = []
    good = list(read_samples(source, on_bad_row=lambda where, error: bad.append((where, str(error)))))
    assert [s.id for s in good] == [f"{tmp_path}/r.jsonl:1", f"{tmp_path}/r.jsonl:4"]
    assert [where for where, _ in bad] == [f"{tmp_path}/r.jsonl:2", f"{tmp_path}/r.jsonl:3"]
    assert all(reason.startswith(f"{where}: ") for where, reason in bad)


ONE_TURN = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x", "loss": False}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            chat_row(answer=" \n"),
            "r.jsonl:1: a turn of the assistant (gpt) is empty; there is nothing to learn from it.",
        ),
        ({"messages": ONE_TURN}, "r.jsonl:1: no turn of the assistant (gpt) to learn"),
        ({"messages": [*user("q"), {"role": "assistant", "content": "", "loss": 0}]}, ""),
    ],
)
def test_training_needs_something_to_learn(tmp_path: Path, row: dict, message: str) -> None:
    (source,) = read_recipe(write(tmp_path, "r.jsonl", json.dumps(row)))
    assert parse(row)  # a chat may hold an empty answer
    if not message:
        assert len(list(read_samples(source))) == 1
        return
    with pytest.raises(DataError) as error:
        list(read_samples(source))
    assert str(error.value).startswith(f"{tmp_path}/{message}")


def test_length_is_checked(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", GOOD + "\n" + GOOD)
    fields = {"root": ".", "annotation": "a.jsonl", "length": 3}
    with pytest.raises(DataError, match=r"a\.jsonl: 2 rows, but the recipe's length for source 's' is 3"):
        samples_of(write(tmp_path, "recipe.json", json.dumps({"s": fields})))
