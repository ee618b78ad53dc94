"""Questions about documents of many pages, in their authors' layouts: a record -> rows. Functions as in questions.py.

    for row in dude({"questionId": ..., "docId": ..., ...}, "0", place): ...     # a PDF, whose pages are seen as frames

Of several accepted answers the first is learned. Pages that are images are images of the row, in their order.
"""

from __future__ import annotations

from eagle_model.data.formats.records import chat, embedded
from eagle_model.data.sources.questions import Place, Rows, need

NO_ANSWER = "The document does not answer this."
_NUM_SLIDES = 20  # of each deck of SlideVQA


def slidevqa(record: object, name: str, place: Place) -> Rows:
    """SlideVQA as its hub holds it: parquet of question, answer and the images page_1 to page_20."""
    record = need(record, "question", "answer")
    pages = [record.get(f"page_{i}") for i in range(1, _NUM_SLIDES + 1)]
    media = [("image", embedded(page, "image")) for page in pages if page is not None]
    named = {"id": str(record["qa_id"])} if record.get("qa_id") is not None else {}
    yield chat([(record["question"], str(record["answer"]))], media, more=named)


def mp_docvqa(record: object, name: str, place: Place) -> Rows:
    """MP-DocVQA: {"data": [{questionId, question, page_ids, answers}]}; images/PAGE.jpg."""
    record = need(record, "questionId", "question", "page_ids")
    if record.get("answers"):  # the test split has none
        media = [("image", place.find(page, ["images"], (".jpg", ".png"))) for page in record["page_ids"]]
        pair = (record["question"], record["answers"][0])
        yield chat([pair], media, more={"id": str(record["questionId"])})


def dude(record: object, name: str, place: Place) -> Rows:
    """DUDE: {"data": [{questionId, question, answers, docId, data_split}]}; PDF/SPLIT/DOC.pdf or PDF/DOC.pdf."""
    record = need(record, "questionId", "question", "docId", "data_split")
    if record["data_split"] == "test":
        return
    answers = record.get("answers") or []
    document = place.find(record["docId"], [f"PDF/{record['data_split']}", "PDF"], (".pdf",))
    pair = (record["question"], answers[0] if answers else NO_ANSWER)
    yield chat([pair], [("video", document)], more={"id": record["questionId"]})
