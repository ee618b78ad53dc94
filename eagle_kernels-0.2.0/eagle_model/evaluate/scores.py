"""From an answer to the numbers of one question: SCORES names the rules that tasks are declared with.

    parsed, numbers = SCORES["letter"](question, "The answer is (B).")
    # "B", {"accuracy": 1.0, "lmms_first": 1.0, "lmms_ranked": 1.0}

`parsed` is what the answer was read as, "" where nothing was understood; the first number is the one that counts. A
question whose answer is hidden gets no numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from eagle_model.evaluate import metrics
from eagle_model.evaluate.letters import lmms_first_letter, lmms_ranked_letter, parse_letter
from eagle_model.evaluate.needle import share_found
from eagle_model.evaluate.task import Question, letter

_MAX_DIGITS = 300  # of a number: a model that says one digit without end says none, and float has no more
Numbers = dict[str, float]
Score = Callable[[Question, str], tuple[str, Numbers]]


def _letter(question: Question, said: str) -> tuple[str, Numbers]:
    options = question.options or ("",) * 4  # LVBench's and RealWorldQA's stand in the question
    letters = "".join(letter(i) for i in range(len(options)))
    parsed = parse_letter(said, options) or ""
    if question.answer is None:
        return parsed, {}
    return parsed, {
        "accuracy": float(parsed == question.answer),
        "lmms_first": float(lmms_first_letter(said, letters) == question.answer),
        "lmms_ranked": float(lmms_ranked_letter(said, letters) == question.answer),
        "unread": float(not parsed),
    }


def _letter_or_text(question: Question, said: str) -> tuple[str, Numbers]:
    """An option's letter where there are options, or the answer is one; else the answer's words, or its number."""
    wanted = question.answer
    if question.options or (isinstance(wanted, str) and re.fullmatch("[A-H]", wanted)):
        return _letter(question, said)
    parsed = metrics.vqa_normal(said)
    if wanted is None:
        return parsed, {}
    answers = wanted if isinstance(wanted, list) else [wanted]
    return parsed, {"accuracy": float(any(parsed == metrics.vqa_normal(str(answer)) for answer in answers))}


def _texts(wanted: object) -> list[str]:
    return [str(text) for text in wanted] if isinstance(wanted, list) else [str(wanted)]


def _anls(question: Question, said: str) -> tuple[str, Numbers]:
    parsed = said.strip()
    return parsed, {} if question.answer is None else {"anls": metrics.anls(parsed, _texts(question.answer))}


def _relaxed(question: Question, said: str) -> tuple[str, Numbers]:
    parsed = said.strip()
    if question.answer is None:
        return parsed, {}
    return parsed, {"accuracy": float(any(metrics.relaxed(parsed, text) for text in _texts(question.answer)))}


def _vqa(question: Question, said: str) -> tuple[str, Numbers]:
    parsed = metrics.vqa_normal(said)
    return parsed, {} if question.answer is None else {"accuracy": metrics.vqa_accuracy(said, question.answer)}


def _ocr(question: Question, said: str) -> tuple[str, Numbers]:
    if question.answer is None:
        return said.strip(), {}
    is_formula = question.fields.get("dataset_name", question.fields.get("dataset")) == "HME100k"
    return said.strip(), {"points": float(metrics.ocr_contains(said, _texts(question.answer), is_formula=is_formula))}


def _yes_no(question: Question, said: str) -> tuple[str, Numbers]:
    """The first "yes" or "no" that is said; the answer is 1 or 0, HallusionBench's, or the word."""
    found = re.search(r"\b(yes|no)\b", said.lower())
    parsed = found[1] if found else ""
    if question.answer is None:
        return parsed, {}
    wanted = {"1": "yes", "0": "no"}.get(str(question.answer).strip().lower(), str(question.answer).strip().lower())
    return parsed, {"accuracy": float(parsed == wanted), "unread": float(not parsed)}


def _span(question: Question, said: str) -> tuple[str, Numbers]:
    """One interval in seconds. R@t is the share of questions whose intersection over union is at least t."""
    span = metrics.parse_span(said)
    parsed = "" if span is None else f"{span[0]:g} - {span[1]:g}"
    if question.answer is None:
        return parsed, {}
    iou = metrics.intersection_over_union([span] if span else [], [question.answer])
    recalls = {f"R@{at}": float(iou >= at) for at in (0.3, 0.5, 0.7)}
    return parsed, {"mIoU": iou, **recalls, "unread": float(span is None)}


def _clues(question: Question, said: str) -> tuple[str, Numbers]:
    """CG-Bench's intervals: rec@IoU is the mean over 0.1, 0.2, ... 0.5 of whether the IoU is above."""
    found = metrics.parse_intervals(said)
    parsed = str(found) if found else ""
    if question.answer is None:
        return parsed, {}
    iou = metrics.intersection_over_union(found, question.answer)
    recall = sum(iou > at / 10 for at in range(1, 6)) / 5
    return parsed, {"mIoU": iou, "rec@IoU": recall, "unread": float(not found)}


def _slidevqa(question: Question, said: str) -> tuple[str, Numbers]:
    parsed = said.strip()
    if question.answer is None:
        return parsed, {}
    asked = str(question.fields.get("question", ""))
    exact, f1 = metrics.em_f1(
        metrics.slidevqa_words(parsed, asked), metrics.slidevqa_words(str(question.answer), asked)
    )
    return parsed, {"ANLS": metrics.anls(parsed, [str(question.answer)]), "EM": exact, "F1": f1}


def _long_document(question: Question, said: str) -> tuple[str, Numbers]:
    parsed = said.strip().removesuffix(".")
    if question.answer is None:
        return parsed, {}
    score = metrics.long_document_score(parsed, str(question.answer), str(question.fields.get("answer_format", "Str")))
    return parsed, {
        "accuracy": score,
        "answerable": float(str(question.answer).lower() != metrics.UNANSWERABLE),
        "answered": float(parsed.lower() != metrics.UNANSWERABLE),
    }


def _number_or_option(question: Question, said: str) -> tuple[str, Numbers]:
    """MathVista without its judge: the option meant, or the last number said, to the precision asked for."""
    kind = question.fields.get("answer_type")
    parsed: str
    if question.options:
        parsed = parse_letter(said, question.options) or ""
        parsed = question.options[ord(parsed) - ord("A")] if parsed else ""
    else:
        found = re.findall(rf"-?(?<!\d)\d{{1,{_MAX_DIGITS}}}(?!\d)(?:\.\d+)?", re.sub(r"(?<=\d),(?=\d)", "", said))
        parsed = said.strip() if kind in ("text", "list") else (found[-1] if found else "")
        if parsed and kind == "float":
            parsed = str(round(float(parsed), int(float(str(question.fields.get("precision") or 2)))))
        elif parsed and kind == "integer":
            parsed = str(int(float(parsed)))
    if question.answer is None:
        return parsed, {}
    is_equal = parsed == str(question.answer).strip()
    if kind == "float" and parsed and not question.options:
        is_equal = float(parsed) == float(question.answer)
    return parsed, {"accuracy": float(is_equal), "unread": float(not parsed)}


def _judged(question: Question, said: str) -> tuple[str, Numbers]:
    """Scored by a judge afterwards: judge.py."""
    return said.strip(), {}


def _needle(question: Question, said: str) -> tuple[str, Numbers]:
    if question.options:
        parsed = parse_letter(said, question.options) or ""
        return parsed, {"accuracy": float(parsed == question.answer)}
    return said.strip(), {"accuracy": share_found(said, question.answer)}


SCORES: Mapping[str, Score] = {
    "letter": _letter,
    "letter_or_text": _letter_or_text,
    "anls": _anls,
    "relaxed": _relaxed,
    "vqa": _vqa,
    "ocr": _ocr,
    "yes_no": _yes_no,
    "span": _span,
    "clues": _clues,
    "slidevqa": _slidevqa,
    "long_document": _long_document,
    "number_or_option": _number_or_option,
    "judged": _judged,
    "needle": _needle,
}
