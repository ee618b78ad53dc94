"""Questions about documents in their official layouts. Where each layout was learned from says sources/table.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagle_model.data.formats.check import check
from eagle_model.data.formats.opening import open_data
from eagle_model.data.sample import VideoRef
from eagle_model.data.sources.pages import NO_ANSWER
from tests.data.formats.conftest import picture
from tests.data.make_pdf import gray, write_pdf
from tests.data.sources.conftest import Read


def test_slidevqa(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pages = {f"page_{i}": {"bytes": picture(i), "path": None} if i < 3 else None for i in range(1, 21)}
    record = {"qa_id": 5, "deck_name": "d", "question": "How many?", "answer": "12", "evidence_pages": [2], **pages}
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "train.parquet")
    report = check(tmp_path, layout="slidevqa", pixels=True)
    assert report.is_good and report.media == {"image": 2}
    ((_, row),) = open_data(tmp_path, layout="slidevqa")[0].rows()
    assert [part["type"] for part in row["messages"][0]["content"]] == ["image", "image", "text"]  # type: ignore[index]


def test_mp_docvqa(read: Read) -> None:
    record = {
        "questionId": 49153, "question": "What is the date?", "doc_id": "x", "page_ids": ["x_p0", "x_p1"],
        "answers": ["1 May", "May 1"], "answer_page_idx": 1, "data_split": "train",
    }  # fmt: skip
    test = {name: value for name, value in record.items() if not name.startswith("answer")}
    content = {"dataset_name": "MP-DocVQA", "data": [record, test]}
    (sample,) = read("mp_docvqa", {"train.json": content}, ["images/x_p0.jpg", "images/x_p1.jpg"])
    assert [image.path.name for image in sample.images] == ["x_p0.jpg", "x_p1.jpg"]
    assert sample.turns[1].text == "1 May"


def test_dude(read: Read, tmp_path: Path) -> None:
    record = {
        "questionId": "d_1", "question": "Is it signed?", "answers": ["Yes"], "answers_page_bounding_boxes": [],
        "answers_variants": [], "answer_type": "abstractive", "docId": "d", "data_split": "train",
    }  # fmt: skip
    none = {**record, "questionId": "d_2", "answers": [], "answer_type": "not-answerable"}
    test = {**record, "questionId": "d_3", "answers": None, "data_split": "test"}
    content = {"dataset_name": "DUDE Dataset", "dataset_version": "0.1", "data": [record, none, test]}
    signed, unanswered = read("dude", {"gt.json": content}, ["PDF/train/d.pdf"])
    assert signed.videos == (VideoRef(tmp_path / "PDF/train/d.pdf"),)
    assert (signed.turns[1].text, unanswered.turns[1].text) == ("Yes", NO_ANSWER)
    pytest.importorskip("pypdfium2", reason="needs pypdfium2 (the extra `pdf`)")
    write_pdf(tmp_path / "PDF/train/d.pdf", [gray(100)])
    assert check(tmp_path, layout="dude").media == {"document": 2}
