"""The report on a data set: what is counted, what is found wrong, and that it stays small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle_model.data.formats import check as check_module
from eagle_model.data.formats.check import check
from tests.data.conftest import write_video
from tests.data.formats.conftest import picture
from tests.data.formats.test_tars import write_tar


def write_rows(path: Path, rows: list[object]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def turns(question: str = "Q", answer: str = "A") -> dict:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def test_a_good_set(root: Path) -> None:
    write_video(root / "clip.mp4")
    rows = [{**turns(), "image": "a.png", "score": 1}, {**turns("Why?"), "video": "clip.mp4", "start": 0.5}, turns()]
    report = check(write_rows(root / "rows.jsonl", rows))
    assert report.is_good and report.num_rows == report.num_good == 3
    assert report.media == {"image": 1, "video": 1}
    assert report.unused_fields == {"score": 1}
    said = report.to_json()
    assert said["lengths"]["Video seconds"]["max"] == pytest.approx(1.5)
    assert said["lengths"]["Characters"] == pytest.approx(
        {"min": 2, "median": 2, "p99": 5, "max": 5, "count": 3}, rel=0.01
    )
    assert json.loads(json.dumps(said)) == said
    assert report.lines()[0].endswith("3 rows, 3 good")


def test_every_kind_of_problem_is_found(root: Path) -> None:
    (root / "cut.png").write_bytes(picture()[:20])
    (root / "cut.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    (root.parent / "secret.png").write_bytes(picture())
    (root / "link.png").symlink_to(root.parent / "secret.png")
    rows: list[object] = [
        "{",
        {"conversations": 1},
        {**turns("<image><image>"), "image": "a.png"},
        {**turns(answer=""), "image": "a.png"},
        {**turns(), "image": "../secret.png"},
        {**turns(), "image": "link.png"},
        {**turns(), "image": "https://host/a.png"},
        {**turns(), "image": "gone.png"},
        {**turns(), "image": "cut.png"},
        {**turns(), "video": "cut.mp4"},
        {**turns(), "image": "a.png"},
    ]
    report = check(write_rows(root / "rows.jsonl", rows))
    assert report.problems == {
        "row": 2, "placeholder": 1, "nothing_to_learn": 1, "outside_root": 3, "missing": 1, "broken": 2,
    }  # fmt: skip
    assert (report.num_rows, report.num_good, report.is_good) == (11, 1, False)
    assert all(message.startswith(f"{root}/rows.jsonl:") for found in report.examples.values() for message in found)
    assert any("gone.png" in line for line in report.lines())


def test_pixels_find_what_is_cut_off_behind_its_header(root: Path) -> None:
    (root / "cut.png").write_bytes(picture(size=(200, 200))[:-40])
    path = write_rows(root / "rows.jsonl", [{**turns(), "image": "cut.png"}])
    assert check(path).is_good
    assert check(path, pixels=True).problems == {"broken": 1}


def test_duplicates_by_what_is_said_and_shown(root: Path) -> None:
    rows = [{"id": i, **turns(), "image": name} for i, name in enumerate(["a.png", "b.jpg", "a.png"])]
    report = check(write_rows(root / "rows.jsonl", rows))
    assert (report.num_duplicates, report.duplicates) == (1, [[1, 3]])
    assert report.is_good  # a hint, no error: a set may repeat on purpose


def test_the_report_stays_small(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "_MAX_FIELDS", 10)
    rows = [{"conversations": "x" * 10_000, f"field_{i}": 1} for i in range(50)]
    rows += [{**turns(), f"field_{i}": 1} for i in range(50)]
    report = check(write_rows(root / "rows.jsonl", rows))
    assert report.problems == {"row": 50} and len(report.examples["row"]) == check_module.EXAMPLES
    assert len(report.unused_fields) == 10 and len("\n".join(report.lines())) < 20_000


def test_media_inside_a_container_are_looked_at_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    members = [
        ("a.png", picture()),
        ("a.txt", b"A."),
        ("b.png", b"nothing"),
        ("b.txt", b"B."),
        ("c.png", picture()),
        ("c.txt", b"A."),
    ]
    report = check(write_tar(tmp_path / "x.tar", members))
    assert (report.num_rows, report.num_good, report.problems) == (3, 2, {"broken": 1})
    assert report.num_duplicates == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_a_file_that_cannot_be_read_on_is_a_problem_and_others_go_on(root: Path) -> None:
    (root / "bad.json").write_text('[{"a": 1}, oops')
    write_rows(root / "good.jsonl", [turns()])
    recipe = {name: {"root": ".", "annotation": f"{name}"} for name in ("bad.json", "good.jsonl")}
    (root / "recipe.json").write_text(json.dumps(recipe))
    report = check(root / "recipe.json")
    assert report.sets == {"bad.json": 1, "good.jsonl": 1} and report.problems["row"] == 2


def test_nothing_that_moves_the_cursor_is_printed(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "x.tar", [("\x1b[2Ja.json", b"{"), ("b.json", json.dumps({**turns(), "\x1b[2J": 1}).encode())]
    )
    report = check(path)
    assert report.problems == {"row": 1} and report.unused_fields
    assert "\x1b" not in "".join(report.lines()) and "?[2J" in "".join(report.lines())


def test_a_recipes_length_is_held(root: Path) -> None:
    write_rows(root / "rows.jsonl", [turns()])
    for length, problems in ((1, {}), (2, {"row": 1})):
        about = {"root": ".", "annotation": "rows.jsonl", "length": length}
        (root / "recipe.json").write_text(json.dumps({"mine": about}))
        assert check(root / "recipe.json").problems == problems


def test_no_rows_are_not_good(root: Path) -> None:
    report = check(write_rows(root / "rows.jsonl", []))
    assert not report.is_good and "no rows" in report.lines()[-1]
