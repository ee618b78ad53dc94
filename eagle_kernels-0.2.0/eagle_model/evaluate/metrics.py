"""How well one answer fits: pure functions of texts, numbers and intervals, each with its source and golden values.

    anls("12 march", ["12 March 1990", "12. March"])       # 0.889: one edit over nine characters
    relaxed("0.52", "50%")                                 # True: within 5 %
    intersection_over_union([[0, 10]], [[5, 15]])          # 0.333

Where a peer's scorer gives another number, docs/evaluation.md lists the case.
"""

from __future__ import annotations

import ast
import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

Intervals = Sequence[Sequence[float]]

MAX_ANSWER_CHARS = 4096  # limit: an edit distance takes their product in steps
_NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's: insertions, deletions and substitutions from one text to the other."""
    if len(a) < len(b):
        a, b = b, a
    before = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        row = [i]
        for j, right in enumerate(b, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (left != right)))
        before = row
    return before[-1]


def anls(said: str, answers: Iterable[str], *, threshold: float = 0.5, is_strict: bool = False) -> float:
    """Average Normalised Levenshtein Similarity of one question: 1 - distance / length to the nearest answer, 0 below
    the threshold. Case and white space do not count.

    is_strict: 0 at the threshold too, as MMLongBench-Doc and SlideVQA's peers have it.
    Source: Biten et al. 2019, arXiv:1905.13648; DocVQA's and InfographicVQA's servers use 0.5.
    """
    plain = " ".join(said[:MAX_ANSWER_CHARS].lower().split())
    best = 0.0
    for answer in answers:
        wanted = " ".join(answer.lower().split())
        longest = max(len(plain), len(wanted))
        best = max(best, 1.0 if longest == 0 else 1 - edit_distance(plain, wanted) / longest)
    return 0.0 if best < threshold or (is_strict and best <= threshold) else best


def _number(text: str) -> float | None:
    """Of "12", "12.5", "1,200", "50%" (0.5) and "$3"."""
    text = text.strip().lstrip("$€£").replace(",", "")
    try:
        value = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def relaxed(said: str, answer: str, *, tolerance: float = 0.05) -> bool:
    """ChartQA's relaxed accuracy: a number within 5 % of the answer's, a text equal but for case.

    A final full stop is no part of either. Where the answer is 0 only 0 is right.
    Source: Masry et al. 2022, arXiv:2203.10244, section 5.1.
    """
    said, answer = said.strip().removesuffix("."), answer.strip().removesuffix(".")
    ours, wanted = _number(said), _number(answer)
    if ours is None or wanted is None:
        return said.lower() == answer.lower()
    return abs(ours - wanted) <= tolerance * abs(wanted)


def vqa_normal(text: str) -> str:
    """As VQA's evaluation compares answers: small letters, digits for number words, no articles, no punctuation."""
    text = text.replace("\n", " ").replace("\t", " ").strip().lower()
    text = re.sub(r"(?<=\d),(?=\d)", "", text)  # 1,000
    text = text.replace("'", "").replace("’", "")  # "dont" is "don't"
    text = re.sub(r"(?<!\d)\.(?!\d)|\.(?!\d)", "", text)  # a point between digits stays
    text = re.sub(r"[;/\[\]\"{}()=+\\_\-><@`,?!]", " ", text)
    words = [_NUMBERS.get(word, word) for word in text.split() if word not in ("a", "an", "the")]
    return " ".join("0" if word == "none" else word for word in words)


def vqa_accuracy(said: str, answers: Sequence[str]) -> float:
    """Of ten people's answers: the mean over each nine of them of min(1, those equal / 3).

    Source: Antol et al. 2015, arXiv:1505.00468; TextVQA uses it.
    """
    plain = vqa_normal(said)
    equal = [vqa_normal(answer) == plain for answer in answers]
    total = sum(equal)
    return sum(min(1.0, (total - is_equal) / 3) for is_equal in equal) / len(equal) if equal else 0.0


def slidevqa_words(text: str, question: str) -> list[str]:
    """An answer's words as SlideVQA's scorer compares them: small letters, digits, no articles, units or punctuation.

    The unit is the word behind "how many" or "which" in the question, in small letters, as its authors look for them.
    """
    text = text.lower()
    for old, new in (("this is ", ""), ("it is ", ""), ("&", ","), ("and", ","), ("percent", ""),
                     ("organisation", "organization"), ("because of", ""), ("because", ""), ("due to", ""),
                     ("hours", "hrs"), ("minites", "min")):  # fmt: skip
        text = text.replace(old, new)
    for asked in ("how many", "which"):
        behind = question.partition(asked)[2].split()
        if behind:
            text = text.replace(behind[0], "")
    text = "".join(char for char in text if char not in string.punctuation)
    words = re.sub(r"\b(a|an|the)\b", " ", text).split()
    if words and (words[0][:3] == "yes" or words[0][:2] == "no"):
        words = words[:1]
    return [_NUMBERS.get(word, word) for word in words]


def em_f1(said: Sequence[str], answer: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 of two lists of words. Source: Rajpurkar et al. 2016, arXiv:1606.05250."""
    same = sum((Counter(said) & Counter(answer)).values())
    if not same:
        return 0.0, 0.0
    return float(list(said) == list(answer)), 2 * same / (len(said) + len(answer))


def ocr_contains(said: str, answers: Sequence[str], *, is_formula: bool = False) -> bool:
    """OCRBench: whether an answer stands in what is said; a formula's without any space, others but for case.

    Source: Liu et al. 2023, arXiv:2305.07895: a point a question, 1,000 in all.
    """
    if is_formula:
        return any("".join(answer.split()) in "".join(said.split()) for answer in answers)
    flat = _half_width(said).lower().strip().replace("\n", " ")
    return any(_half_width(answer).lower().strip().replace("\n", " ") in flat for answer in answers)


def _half_width(text: str) -> str:
    """Full-width forms of ASCII, which Chinese and Japanese texts have, as ASCII."""
    return "".join(chr(ord(c) - 0xFEE0) if "\uff01" <= c <= "\uff5e" else " " if c == "\u3000" else c for c in text)


# -- time


def merged(intervals: Intervals) -> list[tuple[float, float]]:
    """The same seconds as intervals that do not touch, in order; the empty and those that run backwards are turned."""
    found: list[tuple[float, float]] = []
    for start, end in sorted((min(a, b), max(a, b)) for a, b in intervals):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def intersection_over_union(said: Intervals, wanted: Intervals) -> float:
    """Seconds in both over seconds in either; 0 where there are none."""
    ours, theirs = merged(said), merged(wanted)
    both = sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in ours for b in theirs)
    either = sum(end - start for start, end in (*ours, *theirs)) - both
    return both / either if either > 0 else 0.0


_CLOCK = r"(\d{1,2}(?::\d{2}){1,2}(?:\.\d+)?|(?<!\d)\d{1,15}(?!\d)(?:\.\d+)?)"
_UNIT = r"\s*(?:s|secs?|seconds?)?"
_SPAN = re.compile(rf"{_CLOCK}{_UNIT}\s*(?:-|–|—|~|to|until|till|and)\s*(?:second\s*)?{_CLOCK}")


def parse_span(text: str) -> list[float] | None:
    """[start, end] in seconds that an answer names: "from 3.2 to 8 seconds", "00:12 - 00:20", "start: 3, end: 8".

    The first span there is, else the first two times; turned where it runs backwards. None where there are no two.
    """
    text = text.lower()
    if match := _SPAN.search(text):
        found = [_clock(match[1]), _clock(match[2])]
    else:
        found = [_clock(said) for said in re.findall(_CLOCK, text)[:2]]
    return sorted(found) if len(found) == 2 else None


def parse_intervals(text: str, *, most: int = 5) -> list[list[float]]:
    """Those of a list that an answer holds, [[3, 8], [20.5, 31]]: at most `most`, as CG-Bench counts."""
    found = re.findall(rf"[\[(]\s*{_CLOCK}\s*,\s*{_CLOCK}\s*[\])]", text)[:most]
    return [sorted((_clock(start), _clock(end))) for start, end in found]


def _clock(text: str) -> float:
    return sum(float(part) * 60**i for i, part in enumerate(reversed(text.split(":"))))


# -- documents of many pages

UNANSWERABLE = "not answerable"


def long_document_score(said: str, answer: str, kind: str) -> float:
    """MMLongBench-Doc: by the answer's format: Int exact, Float within 1 % (also of its hundredth and hundredfold), Str
    by ANLS above 0.5 (addresses and dates exact), List the worst of its sorted members, None "Not answerable".

    Source: Ma et al. 2024, arXiv:2407.01523, its rules; the answer is taken as it is said, where theirs has a model
    extract it from a longer text first.
    """
    if kind == "Int":
        ours, wanted = _number(said), _number(answer)
        return float(ours is not None and wanted is not None and int(ours) == int(wanted))
    if kind == "Float":
        return float(_close(_clean(said), _clean(answer)))
    if kind == "List":
        return _list_score(_listed(said), _listed(answer))
    return _text_score(_clean(said), _clean(answer))


def _clean(text: object) -> str:
    text = re.sub(r"\s*\([^)]*\)", "", str(text).lower()).strip()
    text = re.sub(r"^['\"]|['\"]$", "", text).strip().removesuffix(".")
    return text.lstrip("$").rstrip("%").strip()


def _close(said: str, answer: str) -> bool:
    ours, wanted = _number(said), _number(answer)
    if ours is None or wanted is None:
        return False
    return any(math.isclose(ours, wanted * factor, rel_tol=0.01) for factor in (0.01, 1, 100))


def _text_score(said: str, answer: str) -> float:
    is_exact = re.fullmatch(r"\d+(-\d+|\s\d+)?|\d{4}[-\s]\d{2}([-\s]\d{2})?|[\w.%+-]+@[\w.-]+\.[a-z]{2,}", answer)
    if is_exact or answer.startswith("page") or answer.endswith((".py", "ipynb")):
        return float(said == answer)
    if any(part in answer for part in ("https://", "a.m.", "p.m.")):
        return float(said == answer)
    return anls(said, [answer], is_strict=True)


def _listed(text: str) -> list[str]:
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = [part for part in re.split(r"[,;\n]", text.strip().strip("[]")) if part.strip()]
    return [_clean(part) for part in (value if isinstance(value, (list, tuple)) else [value])]


def _list_score(said: list[str], answer: list[str]) -> float:
    if len(said) != len(answer):
        return 0.0
    pairs = list(zip(sorted(said), sorted(answer)))
    if pairs and (_number(pairs[0][1]) is not None or _text_score(pairs[0][1], pairs[0][1]) != 1):
        return float(all(ours == wanted for ours, wanted in pairs))
    return min((_text_score(ours, wanted) for ours, wanted in pairs), default=0.0)
