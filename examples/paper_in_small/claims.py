"""The paper's claims as differences of two models' answers to the same questions, and what became of each here.

    Claim(...).outcome(results)      # Outcome(number=Number(0.12, 0.09, 0.15, 6000), seeds=[...], verdict="reproduced")

Paired bootstrap: a unit is the difference of two right-or-wrong answers to one question. Draws are of films (or pages),
with all questions of each and all seeds together (eagle_model/evaluate/totals.py). The interval says what other films
would change; what other seeds would, say the differences of the single seeds. So a claim is

    reproduced      the 95 % interval lies above 0, and every seed's difference does
    contradicted    both lie below 0
    not shown       else
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from eagle_model.evaluate.totals import Number, Unit, mean

Results = Mapping[str, Any]
GROUPS = {"films": ("signs",), "told": ("signs", "told"), "pages": ("square", "long")}


class Asked(NamedTuple):
    """A model, a held-out set, and what it was shown of it: "own" is what its training allowed, else frames a film."""

    model: str
    held_out: str
    view: str = "own"

    @property
    def key(self) -> str:
        return f"{self.model}/{self.held_out}/{self.view}"


def packed(bits: str, each: int) -> dict[str, Any]:
    """Answers as a results file keeps them: "1101", each=2 -> two questions about each of two films."""
    return {"num": len(bits), "each": each, "hex": f"{int(bits, 2):0{-(-len(bits) // 4)}x}"}


def unpacked(content: Mapping[str, Any]) -> list[bool]:
    return [bit == "1" for bit in f"{int(content['hex'], 16):0{content['num']}b}"]


def units(answers: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> list[Unit]:
    """Right answers, 1 or 0, of all seeds, each with its film."""
    return [
        Unit(f"{group} {i // content['each']}", float(right))
        for of_seed in answers
        for group in groups
        for content in [of_seed[group]]
        for i, right in enumerate(unpacked(content))
    ]


def _answers(results: Results, asked: Asked) -> list[Mapping[str, Any]]:
    """Of each seed."""
    return [seed[asked.key] for seed in results["answers"]]


def accuracy(results: Results, asked: Asked, groups: Sequence[str] = ()) -> Number:
    return mean(units(_answers(results, asked), groups or GROUPS[asked.held_out]))


def paired(ours: Sequence[Unit], theirs: Sequence[Unit]) -> Number:
    """The mean difference of answers to the same questions, in the same order."""
    if [unit.media for unit in ours] != [unit.media for unit in theirs]:
        raise ValueError(
            f"paired: {len(ours)} and {len(theirs)} answers are not about the same films in the same order."
        )
    return mean([Unit(a.media, a.value - b.value) for a, b in zip(ours, theirs, strict=True)])


class Outcome(NamedTuple):
    number: Number
    seeds: list[float]
    verdict: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    says: str
    paper: str  # its numbers
    better: Asked
    worse: Asked
    groups: tuple[str, ...] = ()

    def outcome(self, results: Results) -> Outcome:
        groups = self.groups or GROUPS[self.better.held_out]
        better, worse = _answers(results, self.better), _answers(results, self.worse)
        number = paired(units(better, groups), units(worse, groups))
        seeds = [paired(units([a], groups), units([b], groups)).value for a, b in zip(better, worse, strict=True)]
        if number.low > 0 and min(seeds) > 0:
            return Outcome(number, seeds, "reproduced")
        if number.high < 0 and max(seeds) < 0:
            return Outcome(number, seeds, "contradicted")
        return Outcome(number, seeds, "not shown")


def claims(asked_frames: Sequence[int]) -> list[Claim]:
    """asked_frames: ascending; the last is beyond the context of stage 2, the middle one within."""
    few, within, many = str(asked_frames[1]), str(asked_frames[len(asked_frames) // 2]), str(asked_frames[-1])
    return [
        Claim(
            says=f"Figure 1: the last stage answers better with {many} frames than with {few}",
            paper="Video-MME, 128K: 64.8 with 16 frames, 70.7 with 128",
            better=Asked("stage4", "films", many),
            worse=Asked("stage4", "films", few),
        ),
        Claim(
            says=f"Figure 1: with {many} frames, the last stage answers better than the first",
            paper="Video-MME, 128 frames: 70.7 after 128K, about 68 after 16K",
            better=Asked("stage4", "films", many),
            worse=Asked("stage2", "films", many),
        ),
        Claim(
            says=f"Figure 1: the shortest context is past its best with {many} frames: {within} are better",
            paper="Video-MME: the 16K model is best at 128 frames",
            better=Asked("stage2", "films", within),
            worse=Asked("stage2", "films", many),
        ),
        Claim(
            says="Table 4: longer contexts make pages better too",
            paper="mean of 13 image benchmarks: 75.3 after 32K, 75.7 after 128K",
            better=Asked("stage4", "pages"),
            worse=Asked("stage2", "pages"),
        ),
        Claim(
            says="Table 6: IAP makes pages better",
            paper="InfoVQA 77.6, without IAP 76.2; DocVQA 92.3, 91.9",
            better=Asked("stage2", "pages"),
            worse=Asked("no-iap", "pages"),
        ),
        Claim(
            says="Table 6: ADS makes films better",
            paper="MLVU 71.5, without ADS 70.1; Video-MME 65.4, 65.0",
            better=Asked("stage2", "films"),
            worse=Asked("no-ads", "films"),
        ),
        Claim(
            says="Table 6: ADS makes films with a text beside them better",
            paper="the same",
            better=Asked("stage2", "told"),
            worse=Asked("no-ads", "told"),
        ),
        Claim(
            says=f"Table 7: stages beat the last context alone, with {many} frames",
            paper="32K, then 64K: MVBench 73.0, MLVU 74.5, Video-MME 68.1; 64K alone: 71.3, 74.0, 67.9",
            better=Asked("stage4", "films", many),
            worse=Asked("direct", "films", many),
        ),
    ]


def all_asked(asked_frames: Sequence[int]) -> list[Asked]:
    """What every seed is asked: what the claims, the figure and the tables need."""
    films = [Asked(stage, "films", str(n)) for n in asked_frames for stage in ("stage2", "stage3", "stage4")]
    alone = [Asked("direct", "films", str(asked_frames[-1]))]
    tables = [Asked(arm, name) for arm in ("stage2", "no-ads", "no-iap") for name in GROUPS]
    return films + alone + tables + [Asked(arm, "pages") for arm in ("stage3", "stage4", "direct")]
