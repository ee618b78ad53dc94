"""Official files as they should not be, and what is made of their columns."""

import json
from pathlib import Path

import pytest

from eagle_model.data.sample import DataError
from eagle_model.evaluate.read import read
from eagle_model.evaluate.tasks import TASKS
from tests.evaluate.official import IMAGE, SETS, js, jsonl, parquet


def test_missing_files_and_splits_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no videomme/test-\*\.parquet.*Download lmms-lab/Video-MME"):
        list(read(TASKS["videomme"], tmp_path))
    with pytest.raises(DataError, match="has no split 'train'; needs one of test"):
        list(read(TASKS["videomme"], tmp_path, split="train"))


def test_another_layout_is_refused_with_file_line_and_columns(tmp_path: Path) -> None:
    js("lvb_val.json", [{"id": "1"}])(tmp_path)
    with pytest.raises(DataError, match=r"lvb_val\.json:1: not of LongVideoBench.*KeyError.*correct_choice \(int\)"):
        list(read(TASKS["longvideobench"], tmp_path))
    jsonl("video_info.meta.jsonl", [{"key": "k", "qa": 3}])(tmp_path)
    with pytest.raises(DataError, match="has no list 'qa'"):
        list(read(TASKS["lvbench"], tmp_path))


def test_a_question_twice_is_refused(tmp_path: Path) -> None:
    row = {"q_uid": "u", "question": "What?", **{f"option {i}": str(i) for i in range(5)}}
    js("questions.json", [row, row])(tmp_path)
    with pytest.raises(DataError, match="question u is also at"):
        list(read(TASKS["egoschema"], tmp_path))


def test_an_answer_that_is_no_option_is_refused(tmp_path: Path) -> None:
    js("json/action_sequence.json", [{"video": "a", "question": "?", "candidates": ["x"], "answer": "y"}])(tmp_path)
    with pytest.raises(DataError, match="answer is 'y', which is none of the options"):
        list(read(TASKS["mvbench"], tmp_path))


def test_mmbench_is_asked_in_all_rotations(tmp_path: Path) -> None:
    SETS["mmbench"].write(tmp_path)
    found = {q.id: (q.options, q.answer) for q in read(TASKS["mmbench"], tmp_path)}
    assert found == {
        "1": (("x", "y"), "B"),
        "1000001": (("y", "x"), "A"),
        "2": (("u", "v", "w"), "A"),
        "1000002": (("v", "w", "u"), "C"),
        "2000002": (("w", "u", "v"), "B"),
    }
    assert [q.text.split("\n")[0] for q in read(TASKS["mmbench"], tmp_path)][2] == "Look."


def test_records_that_a_task_does_not_take_are_told(tmp_path: Path) -> None:
    SETS["hd_epic"].write(tmp_path)
    left_out: list[str] = []
    (question,) = read(TASKS["hd_epic"], tmp_path, on_left_out=left_out.append)
    assert len(left_out) == 1 and question.video == "videos/P01/P01-20240202-1.mp4" and question.end == 1.0


def test_options_lose_letters_that_they_say_themselves(tmp_path: Path) -> None:
    SETS["videomme"].write(tmp_path)
    question = next(read(TASKS["videomme"], tmp_path))
    assert question.options == ("red", "blue", "green", "grey") and "\nA. red\nB. blue" in question.text


def test_questions_of_one_film_have_one_medium(tmp_path: Path) -> None:
    SETS["videomme"].write(tmp_path)
    assert [q.media for q in read(TASKS["videomme"], tmp_path)] == ["data/v1.mp4:None:None"] * 3 + [
        "data/v2.mp4:None:None"
    ]
    SETS["docvqa"].write(tmp_path)
    assert [q.media for q in read(TASKS["docvqa"], tmp_path)] == ["1", "2"]


def test_a_list_in_the_place_of_a_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "questions.json").write_text(json.dumps([[1]]))
    with pytest.raises(DataError, match="is no record"):
        list(read(TASKS["egoschema"], tmp_path))


def test_rows_are_numbered_through_all_files_of_a_set(tmp_path: Path) -> None:
    """RealWorldQA has two files: their first rows are two questions."""
    for i in range(2):
        rows = [{"image": IMAGE, "question": f"Which {i}?", "answer": "A"}, {"image": IMAGE, "question": "How many?"}]
        parquet(f"data/test-0000{i}-of-00002.parquet", rows)(tmp_path)
    assert [q.id for q in read(TASKS["realworldqa"], tmp_path)] == ["0", "1", "2", "3"]


def test_a_question_twice_is_numbered_where_the_file_has_no_ids(tmp_path: Path) -> None:
    row = {"imgname": "a.png", "query": "How many?", "label": "1"}
    js("test/test_human.json", [row, {**row, "label": "2"}, {**row, "query": "Who?"}, row])(tmp_path)
    assert [q.id.rpartition("/")[2] for q in read(TASKS["chartqa"], tmp_path)] == [
        "How many?", "How many?#2", "Who?", "How many?#3",
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "split"), [("chartqa", "val"), ("textvqa", "test")])
def test_pictures_of_a_split_are_in_its_own_folder(name: str, split: str, tmp_path: Path) -> None:
    js("val/val_human.json", [{"imgname": "a.png", "query": "Who?", "label": "1"}])(tmp_path)
    js("TextVQA_0.5.1_test.json", {"data": [{"question_id": 1, "question": "Who?", "image_id": "a"}]})(tmp_path)
    (question,) = read(TASKS[name], tmp_path, split=split)
    assert question.images == ({"chartqa": "val/png/a.png", "textvqa": "test_images/a.jpg"}[name],)


def test_answers_that_are_not_public_are_none(tmp_path: Path) -> None:
    row = {"id": "t", "question": "Who?", "options": "['a', 'b']", "answer": "?", "question_type": "multiple-choice",
           "subfield": "Art"}  # fmt: skip
    parquet("Art/test-0.parquet", [row, {**row, "id": "u", "options": "[]", "question_type": "open"}])(tmp_path)
    assert [q.answer for q in read(TASKS["mmmu"], tmp_path, split="test")] == [None, None]
    row = {"id": "l", "question": "Who?", "candidates": ["a", "b"], "video_path": "x.mp4", "correct_choice": -1,
           "subtitle_path": "x.json", "starting_timestamp_for_subtitles": 0.0}  # fmt: skip
    js("lvb_test_wo_gt.json", [row])(tmp_path)
    assert next(read(TASKS["longvideobench"], tmp_path, split="test")).answer is None


def test_an_option_keeps_its_letter_whatever_it_says(tmp_path: Path) -> None:
    row = {"qid": "1", "video": "h.mp4", "question": "?", "answer": "D", "category": "c", "qa_type": "q"}
    jsonl("a.jsonl", [{**row, "options": ["x", "", "N/A", "w", None]}, {**row, "options": {"A": "x"}}])(tmp_path)
    questions = read(TASKS["hrvideobench"], tmp_path)
    first = next(questions)
    assert (first.options, first.answer) == (("x", "", "N/A", "w"), "D")
    with pytest.raises(DataError, match=r"a\.jsonl:2: options is .*needs a list"):
        next(questions)


def test_lines_of_another_editor(tmp_path: Path) -> None:
    (tmp_path / "charades_sta_test.txt").write_bytes(b"\xef\xbb\xbfAB 1.0 2.0##he sits.\r\nCD 1.5 3.0##she runs.\r\n")
    found = [(q.video, q.answer) for q in read(TASKS["charades_sta"], tmp_path)]
    assert found == [("Charades_v1_480/AB.mp4", [1.0, 2.0]), ("Charades_v1_480/CD.mp4", [1.5, 3.0])]
