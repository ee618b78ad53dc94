"""Which option an answer to a multiple-choice question means: our reading of it, and lmms-eval's two, to compare.

    parse_letter("Because B is wrong, the answer is (C).", ["red", "blue", "green"])        # "C"
    lmms_first_letter("Because it is C", "ABC")                                             # "B", of Because
    lmms_ranked_letter("About C", "ABC")                                                    # "C"

Ours, in this order: what stands behind a model's thoughts; a letter that is all there is; \\boxed{B},
<answer>B</answer>, {"answer": "B"}; what the last "answer is", "option", ... names; a letter that the text begins or
ends with; the one letter in brackets; the one letter that stands alone, where "A" and "I" are words unless a mark
follows them; the one option whose words are said. None where nothing or more than one is meant: it counts as wrong, and
is counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from eagle_model.evaluate.task import letter

_THOUGHTS = ("</think>", "</thinking>", "</reasoning>")
_WRAPPED = (
    r"\\boxed\{\s*(?:\\text\{)?\s*\(?([A-Z])\b",
    r"<answer>\s*\(?([A-Za-z])\)?[\s.:)]*[^<]{0,200}</answer>",
    r'"(?:answer|result|option|choice|final_answer)"\s*:\s*"\s*\(?([A-Za-z])\)?(?:[\s.):][^"]{0,200})?"',
)
# What names an option: "the answer is", "Answer:", "I choose", "option", "go with" ...
_NAMES = (
    r"(?:answers?|options?|choices?|selections?|conclusion)\b(?:\s+(?:here|letter|to\s+(?:the|this)\s+question))?"
    r"\s*(?:(?:is|are|was|would\s+be|should\s+be|must\s+be|has\s+to\s+be|will\s+be|seems\s+to\s+be|appears\s+to\s+be)\b"
    r"|[:=])"
    r"(?:\s*(?:most\s+likely|likely|probably|therefore|thus|clearly|simply|definitely|option|choice|letter|answer)\b)*"
    r"|(?:choose|chose|pick|picked|select|selected|go\s+with|going\s+with|going\s+for|opt\s+for|vote\s+for)\b"
    r"(?:\s+(?:option|choice|letter|answer))?"
)
_LETTER = r"[\s:=\"'*_`(\[{]*([A-Z])(?![A-Za-z'’])"
_ENDS = (
    r"\b([A-Z])[)\]]?\s*(?:is|was|would\s+be|seems|must\s+be|looks)\s+(?:the\s+|most\s+likely\s+the\s+)?"
    r"(?:right|correct|best|true|most\s+\w+|only|answer)"
)
_NOT = re.compile(
    r"(?:\bnot|n't|n’t|\bneither|\bnor|\brather\s+than|\binstead\s+of|\bexcept|\bexclude[sd]?|\beliminate[sd]?|"
    r"\brul(?:e|ed|es|ing)\s+out)\s*(?:option|choice|answer|be)?\s*[(\"'*]*$",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"^[)\"'*.\]]*\s*(?:,\s*)?(?:is|are|was|seems|looks|can(?:not|'t)|could|does)\s*(?:\w+\s+){0,2}?"
    r"(?:not|n't|wrong|incorrect|false|impossible|unlikely|out|excluded|ruled|eliminated)\b",
    re.IGNORECASE,
)
_OR_ANOTHER = re.compile(r"[)\]]?,?\s+or\s+[(\[]?[A-Z]\b")  # "A or B" means neither
_AFTER_OR = re.compile(r"\b[A-Z][)\]]?,?\s+or\s+[(\[]?$")
_BEFORE = 40  # characters before a letter that may deny it
MAX_CHARS = 8000  # limit: of longer answers the first and the last half of so many are read
_ARTICLES = "AI"
_A_NOUN = re.compile(  # behind an article, and no word that none stands before
    r"(?:\s+(?!(?:because|since|as|is|was|for|and|or|fits|describes|matches|seems|would|must|should|based|due|which)\b)"
    r"[a-z]|['’])"
)


def parse_letter(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that `text` means, or None. options: their texts, A first."""
    letters = "".join(letter(i) for i in range(len(options)))
    for mark in _THOUGHTS:
        text = text.rpartition(mark)[2]
    text = text.strip()
    if len(text) > MAX_CHARS:
        text = text[: MAX_CHARS // 2] + text[-MAX_CHARS // 2 :]
    if found := re.fullmatch(r"[\W_]*([A-Za-z])[\W_]*", text):
        return _of(found[1], letters)
    for pattern in _WRAPPED:
        if found_all := re.findall(pattern, text):
            return _of(found_all[-1], letters)
    plain = re.sub(r"[*_`$]+", "", text).strip()
    for read in (_named, _begins, _ends, _bracketed, _alone):
        if said := read(plain, letters):
            return said
    return _by_words(plain, options)


def _of(said: str, letters: str) -> str | None:
    return said.upper() if said.upper() in letters else None


def _stands(text: str, at: int) -> bool:
    """Whether the letter at `at` is no article or pronoun: "A dog", "I see"; nor denied, nor one
    of two: "not B", "B is wrong", "A or B"."""
    if _NOT.search(text[max(0, at - _BEFORE) : at]) or _DENIED.match(text[at + 1 :]):
        return False
    if _OR_ANOTHER.match(text[at + 1 :]) or _AFTER_OR.search(text[max(0, at - _BEFORE) : at]):
        return False
    return text[at] not in _ARTICLES or not _A_NOUN.match(text[at + 1 :])


def _named(text: str, letters: str) -> str | None:
    found: list[tuple[int, str]] = []
    for match in re.finditer(f"(?:{_NAMES}){_LETTER}", _capitals_kept(text)):
        said, at = match[1], match.start(1)
        if (
            said in letters
            and not _NOT.search(text[max(0, match.start() - _BEFORE) : match.start()])
            and _stands(text, at)
        ):
            found.append((at, said))
    for match in re.finditer(_ENDS, text):
        said = match[1]
        if said in letters and not _NOT.search(text[max(0, match.start(1) - _BEFORE) : match.start(1)]):
            found.append((match.start(1), said))
    return max(found)[1] if found else None


def _capitals_kept(text: str) -> str:
    """In small letters, but for capitals that stand alone: what names an option is read in any case."""
    return re.sub(r"[A-Za-z]{2,}", lambda word: word[0].lower(), text)


def _begins(text: str, letters: str) -> str | None:
    match = re.match(r"[(\[\"']*([A-Z])(?:[)\].:,;\"']|\s*[-–—]\s|\s*\n|\s*$)", text)
    if not match:
        match = re.match(r"(?:[Oo]ption|OPTION|[Cc]hoice|[Aa]nswer|[Ll]etter)\s*:?\s*[(\[\"']*([A-Z])\b", text)
    if match and match[1] in letters and _stands(text, match.start(1)):
        return match[1]
    if (match := re.match(r"([A-Z])\s+[A-Z]", text)) and match[1] in letters and match[1] not in _ARTICLES:
        return match[1]  # "B The red one"
    return None


def _ends(text: str, letters: str) -> str | None:
    match = re.search(r"(?:^|[\s:(\[\"'])([A-Z])[)\].!\"']*$", text)
    if match and match[1] in letters and _stands(text, match.start(1)):
        return match[1]
    return None


def _bracketed(text: str, letters: str) -> str | None:
    return _only(r"[(\[]([A-Z])[)\]]", text, letters)


def _alone(text: str, letters: str) -> str | None:
    return _only(r"(?<![A-Za-z'’])([A-Z])(?![A-Za-z'’])", text, letters)


def _only(pattern: str, text: str, letters: str) -> str | None:
    """The one letter that a pattern finds, however often; None where it finds several or none."""
    said = {m[1] for m in re.finditer(pattern, text) if m[1] in letters and _stands(text, m.start(1))}
    return said.pop() if len(said) == 1 else None


def _words(text: str) -> str:
    return " " + " ".join(re.findall(r"[^\W_]+", text.lower())) + " "


def _by_words(text: str, options: Sequence[str]) -> str | None:
    """The one option whose words are said, where none of the others' are, but as a part of them."""
    said = _words(text)
    wanted = [_words(option) for option in options]
    equal = [i for i, words in enumerate(wanted) if words == said]
    found = equal or [i for i, words in enumerate(wanted) if words.strip() and words in said]
    found = [i for i in found if not any(j != i and wanted[i] in wanted[j] for j in found)]
    return letter(found[0]) if len(found) == 1 else None


# -- as lmms-eval reads answers, at 75571cf; told apart from ours in every table

_LMMS_PREFIXES = (
    "The best answer is", "The correct answer is", "The answer is", "The answer", "The best option is",
    "The correct option is", "Best answer:", "Best option:",
)  # fmt: skip


def lmms_first_letter(text: str, letters: str) -> str:
    """The first of `letters` anywhere, in words too, behind some known beginnings; "" where there is none.

    What its Video-MME did until 2025 and its LongVideoBench does: there "" is an option at random.
    """
    text = text.strip()
    for prefix in _LMMS_PREFIXES:
        text = text.replace(prefix, "")
    found = re.search(f"[{letters}]", text)
    return found[0] if found else ""


def lmms_ranked_letter(text: str, letters: str) -> str:
    """The best placed of `letters`: at the start, at the end, after a phrase, in brackets, before ".", ":", ")", or a
    space; the last of the best. What its `extract_mcq_answer` does, phrases in English alone."""
    body = " " + text.strip().strip(",.!?;:'\"") + " "
    stripped, low = body.strip(), body.lower()
    ranked: list[tuple[int, int, str]] = []
    for said in letters:
        for rank, form in ((6, f"({said})"), (5, f"{said}."), (4, f"{said}:"), (3, f"{said})"), (2, f"{said} ")):
            if form in body:
                ranked.append((rank, body.rfind(form), said))
        for phrase in ("answer is", "option is", "choice is", "i choose", "i select", "i pick"):
            if (at := low.find(phrase)) >= 0 and (at := body.find(said, at + len(phrase))) >= 0:
                ranked.append((7, at, said))
        if re.match(f"{said}(?![^\\W\\d_])", stripped):
            ranked.append((10, 0, said))
        if re.search(f"(?<![^\\W\\d_]){said}$", stripped):
            ranked.append((9, len(body) - 1, said))
    if not ranked:
        ranked = [(0, body.rfind(said), said) for said in letters if said in body]
    return max(ranked, key=lambda entry: entry[:2])[2] if ranked else ""
