"""annotate/prompts.py: files, their versions, and a user's own in their place."""

from pathlib import Path

import pytest

from eagle_model.annotate.prompts import FOLDER, load, schema_of
from eagle_model.infer.json_answers import schema_problem

NAMES = sorted(path.stem for path in FOLDER.glob("*.txt"))


def test_these_are_the_prompts() -> None:
    assert NAMES == ["choose", "clip_caption", "clip_questions", "screen", "story_caption", "story_questions"]


@pytest.mark.parametrize("name", NAMES)
def test_each_is_filled_and_has_a_version(name: str) -> None:
    prompt = load(name)
    names = (
        "title",
        "start",
        "end",
        "speech",
        "duration",
        "chapters",
        "number",
        "brief",
        "types",
        "question",
        "options",
    )
    assert "$" not in prompt.fill(**dict.fromkeys(names, "x"))
    assert len(prompt.version) == 12 and prompt == load(name)


def test_a_users_file_takes_its_place_under_another_version(tmp_path: Path) -> None:
    (tmp_path / "clip_caption.txt").write_text("Say what you see.$speech")
    assert load("clip_caption", tmp_path).fill(speech="!") == "Say what you see.!"
    assert load("clip_caption", tmp_path).version != load("clip_caption").version
    assert load("choose", tmp_path) == load("choose")


def test_a_users_file_that_names_what_is_not_filled_is_refused(tmp_path: Path) -> None:
    (tmp_path / "choose.txt").write_text("$question $title")
    with pytest.raises(ValueError, match=r"\$title is filled by nothing; known are options, question"):
        load("choose", tmp_path)


QUESTION = {"question": "Q", "answer": "A", "short": "a", "wrong": ["b", "c", "d"]}


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("clip_questions", {"planning": QUESTION, "navigation": None}, None),
        ("clip_questions", {"planning": QUESTION}, "answer lacks 'navigation'"),
        (
            "clip_questions",
            {"planning": {**QUESTION, "wrong": ["b"]}, "navigation": None},
            "answer.planning.wrong has 1 items",
        ),
        ("story_questions", {"questions": [QUESTION]}, None),
        ("story_questions", {"questions": []}, "answer.questions has 0 items"),
        ("story_caption", {"brief": "b", "detailed": ""}, "answer.detailed has 0 characters"),
        ("screen", {"watermark": False, "unsafe": False, "still": "no"}, 'answer.still is "no"'),
    ],
    ids=range(7),
)
def test_answers_keep_their_schema(name: str, value: object, problem: str | None) -> None:
    said = schema_problem(value, schema_of(name, ("planning", "navigation")))
    assert said == problem if problem is None else (said or "").startswith(problem)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("caption.txt", "Look.", "caption.txt is no prompt that is used; the names are choose.txt"),
        ("choose.txt", "$question costs 5$. $options", "write \\$\\$ for the sign itself"),
    ],
    ids=range(2),
)
def test_a_file_that_would_do_nothing_is_refused(tmp_path: Path, name: str, text: str, problem: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=problem):
        load("choose", tmp_path)
    with pytest.raises(ValueError, match="which is no folder"):
        load("choose", tmp_path / "nowhere")
