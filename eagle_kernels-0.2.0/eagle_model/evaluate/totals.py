"""From the questions of a benchmark to its table: means, macro averages and what is counted in groups, each with its
95 % confidence interval.

    total("mean", rows)["accuracy"]          # Number(value=0.724, low=0.708, high=0.741, num=2700)

A row is a scored answer: {"id", "task", "media", "numbers": {...}, "fields": {...}}. Intervals are percentiles of 1,000
bootstrap draws of videos (or images), not of questions: the questions of one video stand and fall together. The seed is
fixed, so the same rows give the same table.

Everything is a mean of units. A unit is a question, or all questions on one figure (HallusionBench's fAcc: right where
each is), all rotations of one (MMBench); macro averages are means of the means of groups.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

NUM_DRAWS = 1000  # of the bootstrap: the ends of the interval are then known to some 3 % of its width
_DRAWS_AT_ONCE = 100  # of 26,000 clips, HD-EPIC's, 20 MB
_SEED = 2504
Row = Mapping[str, Any]


class Number(NamedTuple):
    value: float
    low: float  # of the 95 % interval
    high: float
    num: int  # units

    def text(self, scale: float = 100.0) -> str:
        return f"{self.value * scale:.1f} ({self.low * scale:.1f} to {self.high * scale:.1f}, n = {self.num})"


class Unit(NamedTuple):
    media: str
    value: float
    group: str = ""
    weight: float = 1.0  # a mean is sum(value) / sum(weight)


def mean(units: Sequence[Unit]) -> Number:
    """The mean of the groups' means, where each unit is of a group; of one group the mean."""
    values, draws = _draws(units)
    return _number(values, draws, len(units))


def _draws(units: Sequence[Unit]) -> tuple[float, np.ndarray]:
    """The mean, and that of each draw of media."""
    media = {name: i for i, name in enumerate(dict.fromkeys(unit.media for unit in units))}
    groups = {name: i for i, name in enumerate(dict.fromkeys(unit.group for unit in units))}
    sums, weights = np.zeros((len(media), len(groups))), np.zeros((len(media), len(groups)))
    for unit in units:
        sums[media[unit.media], groups[unit.group]] += unit.value
        weights[media[unit.media], groups[unit.group]] += unit.weight
    generator = np.random.default_rng(_SEED)
    even = np.full(len(media), 1 / len(media))

    def of(counts_DM: np.ndarray) -> np.ndarray:
        total, weight = counts_DM @ sums, counts_DM @ weights
        means = np.divide(total, weight, out=np.full(total.shape, np.nan), where=weight > 0)
        seen = ~np.isnan(means)  # a group that a draw leaves out is left out of its mean
        return np.where(seen, means, 0).sum(axis=1) / np.maximum(1, seen.sum(axis=1))

    draws = [
        of(generator.multinomial(len(media), even, size=_DRAWS_AT_ONCE)) for _ in range(NUM_DRAWS // _DRAWS_AT_ONCE)
    ]
    return float(of(np.ones((1, len(media))))[0]), np.concatenate(draws)


def _number(value: float, draws: np.ndarray, num: int) -> Number:
    low, high = np.percentile(draws, [2.5, 97.5])
    return Number(value, float(low), float(high), num)


def _units(rows: Sequence[Row], name: str, group: str = "") -> list[Unit]:
    return [
        Unit(row["media"], row["numbers"][name], str(row["fields"].get(group, "")) if group else "")
        for row in rows
        if name in row["numbers"]
    ]


def _all_right(rows: Sequence[Row], *fields: str) -> list[Unit]:
    """A unit for each value of the fields: 1 where all its questions are right."""
    together: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        together[tuple(str(row["fields"].get(name, "")) for name in fields)].append(row)
    return [Unit(same[0]["media"], float(all(r["numbers"]["accuracy"] for r in same))) for same in together.values()]


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row["numbers"]))


def _mean(rows: Sequence[Row]) -> dict[str, Number]:
    return {name: mean(_units(rows, name)) for name in _names(rows)}


def _macro(group: str) -> Callable[[Sequence[Row]], dict[str, Number]]:
    return lambda rows: {name: mean(_units(rows, name, group)) for name in _names(rows)}


def _points(rows: Sequence[Row]) -> dict[str, Number]:
    """OCRBench: points of 1,000."""
    number = mean(_units(rows, "points"))
    scale = number.num / 100  # a table shows hundredfold
    return {"points": Number(number.value * scale, number.low * scale, number.high * scale, number.num)}


def _circular(rows: Sequence[Row]) -> dict[str, Number]:
    """MMBench: a question is right where it is with its options in every rotation; `vanilla` is of the first alone."""
    first = [row for row in rows if str(row["id"]) == str(row["fields"]["circle"])]
    return {"accuracy": mean(_all_right(rows, "circle")), "vanilla": mean(_units(first, "accuracy"))}


def _hallusion(rows: Sequence[Row]) -> dict[str, Number]:
    """HallusionBench: of questions, of figures, of question pairs; the paper's number is the mean of the three.

    A question without a figure (VS, figure 0) belongs to no figure.
    """
    shown = [r for r in rows if not (r["fields"]["category"] == "VS" and str(r["fields"]["figure_id"]) == "0")]
    where = ("category", "subcategory", "set_id")
    # Sets stand and fall together: they are what is drawn.
    parts = {
        "aAcc": _units(rows, "accuracy"),
        "fAcc": _all_right(shown, *where, "figure_id"),
        "qAcc": _all_right(rows, *where, "question_id"),
    }
    found = {name: mean(units) for name, units in parts.items() if units}
    value, low, high = (sum(number[i] for number in found.values()) / len(found) for i in range(3))
    return {"average": Number(value, low, high, len(rows)), **found}


def _long_document(rows: Sequence[Row]) -> dict[str, Number]:
    """MMLongBench-Doc: accuracy, and F1 of recall over what can be answered and precision over what was."""
    hits = [(r["media"], r["numbers"]) for r in rows]
    right = [Unit(media, n["accuracy"] * n["answerable"], weight=n["answerable"]) for media, n in hits]
    said = [Unit(media, n["accuracy"] * n["answerable"], weight=n["answered"]) for media, n in hits]
    (recall, recalls), (precision, precisions) = _draws(right), _draws(said)
    f1s = 2 * recalls * precisions / np.maximum(recalls + precisions, 1e-12)
    f1 = 2 * recall * precision / (recall + precision) if recall + precision else 0.0
    return {"accuracy": mean(_units(rows, "accuracy")), "F1": _number(f1, f1s, len(rows))}


def _cgbench(rows: Sequence[Row]) -> dict[str, Number]:
    """CG-Bench: clue, long and open accuracy, mIoU, rec@IoU; acc@IoU where long is right and the clue is found; CRR,
    what of the accuracy with the clue alone is kept over the whole film."""
    by_part = {part: [row for row in rows if row["task"] == f"cgbench_{part}"] for part in ("clue", "long", "open")}
    clues = [row for row in rows if row["task"] == "cgbench_grounding"]
    found = {part: mean(units) for part, its in by_part.items() if (units := _units(its, "accuracy"))}
    if not clues:
        return found
    found |= {name: mean(_units(clues, name)) for name in ("mIoU", "rec@IoU")}
    long = {row["fields"]["qid"]: row["numbers"]["accuracy"] for row in by_part["long"] if row["numbers"]}
    both = [row for row in clues if row["fields"]["qid"] in long]
    if both:
        units = [Unit(r["media"], r["numbers"]["rec@IoU"] * long[r["fields"]["qid"]]) for r in both]
        found["acc@IoU"] = mean(units)
    if "clue" in found and "long" in found and found["clue"].value:
        kept = min(found["long"].value, found["clue"].value) / found["clue"].value
        found["CRR"] = Number(kept, kept, kept, found["long"].num)  # of two means: no interval is given
    return found


def _mlvu(rows: Sequence[Row]) -> dict[str, Number]:
    """MLVU: M-Avg over the kinds of questions with options, G-Avg (2 to 10) over the two that a judge scores."""
    found = {}
    if units := _units(rows, "accuracy", "question_type"):
        found["M-Avg"] = mean(units)
        found["lmms_first"] = mean(_units(rows, "lmms_first", "question_type"))
        found["lmms_ranked"] = mean(_units(rows, "lmms_ranked", "question_type"))
    if units := _units(rows, "judged", "question_type"):
        found["G-Avg"] = mean(units)
    return found


TOTALS: Mapping[str, Callable[[Sequence[Row]], dict[str, Number]]] = {
    "mean": _mean,
    "macro by type": _macro("_file"),  # MVBench: of its 20 tasks, a file each
    "points": _points,
    "circular": _circular,
    "hallusion": _hallusion,
    "long document": _long_document,
    "cgbench": _cgbench,
    "mlvu": _mlvu,
}


def total(name: str, rows: Sequence[Row]) -> dict[str, Number]:
    """The benchmark's numbers, the one that counts first; {} where no row has a score."""
    scored = [row for row in rows if row["numbers"]]
    return TOTALS[name](scored) if scored else {}


def by_group(name: str, rows: Sequence[Row], column: str) -> dict[str, dict[str, Number]]:
    """The same numbers of the rows of each value of a column; a row whose column lists several is of each."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        value = row["fields"].get(column)
        for one in value if isinstance(value, list) else [value]:
            if one is not None:
                groups[str(one)].append(row)
    return {value: found for value, its in sorted(groups.items()) if (found := total(name, its))}
