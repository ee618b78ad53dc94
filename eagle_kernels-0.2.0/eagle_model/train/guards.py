"""Guards over the numbers of steps: a loss or gradient that is not finite, and a loss far above those before it.

    guards = Guards(config.guards, run, ranks, say=print, steps_done=0)
    if guards.may_take(13, loss, grad_norm, ids):            # else the step is left out: no update is made of it
        ...
    guards.num_left_out                                      # steps, since the run began

Both are lines of RUN/guards.jsonl, with the ids of the step's samples over all ranks, by its rows.

Score    (loss - median) / (1.4826 * median of |x - median|) over the last steps: their mean and standard deviation
         would follow the spikes that are looked for. The divisor is at least 1 % of the median: a loss that hardly
         moves makes no small change a spike.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from eagle_model.fields import few, require
from eagle_model.train.first import on_first
from eagle_model.train.metrics import read_metrics
from eagle_model.train.ranks import Ranks
from eagle_model.train.step_log import StepLog, read_log

LOG = "guards.jsonl"
MIN_STEPS = 20  # of which losses are known before one is called a spike
NORMAL_SPREAD = 1.4826  # standard deviations of a normal distribution in one median absolute deviation
MIN_SPREAD = 0.01  # of the median

StepIds = list[tuple[int, list[str]]]  # rows of a step by their number, and the ids of their samples


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardsConfig:
    """What a run does about steps that go wrong, or do not end."""

    max_not_finite: int = 1  # steps in a row whose loss or gradient is not finite end the run; fewer are left out
    spike_score: float | None = 8.0  # robust deviations above the last losses that are reported; none: no report
    spike_steps: int = 100  # that a loss is compared with
    hang_minutes: float | None = 20.0  # that one row may take: then stacks are written and all ends; none: for ever

    def __post_init__(self) -> None:
        require(self.max_not_finite >= 1, "max_not_finite", self.max_not_finite, "1 or more")
        require(self.spike_steps >= MIN_STEPS, "spike_steps", self.spike_steps, f"{MIN_STEPS} or more")
        for name in ("spike_score", "hang_minutes"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, name, value, "a number above 0, or none")


def spike_score(loss: float, recent: deque[float]) -> float:
    """How many robust standard deviations a loss is above the recent ones; 0 while too few are known.

    Example: spike_score(4.0, deque([1.0, 1.2] * 10)) == 2.9 / 0.14826
    """
    if len(recent) < MIN_STEPS:
        return 0.0
    middle = median(recent)
    spread = NORMAL_SPREAD * median(abs(x - middle) for x in recent)
    return (loss - middle) / max(spread, MIN_SPREAD * abs(middle), 1e-12)


class Guards:
    """Of one run. All ranks make the same calls with the same numbers, and come to the same answers."""

    def __init__(
        self, config: GuardsConfig, run_folder: Path, ranks: Ranks, *, say: Callable[[str], None], steps_done: int
    ) -> None:
        """What a run that is resumed needs to know is in its logs, up to the step that it resumes from."""
        self._config, self._ranks, self._say = config, ranks, say
        self.path = run_folder / LOG

        def known() -> list[list[float]]:
            self._log = StepLog(self.path, steps_done=steps_done)
            bad = [line["step"] for line in read_log(self.path) if line.get("kind") == "not_finite"]
            metrics = run_folder / "metrics.jsonl"
            lines = read_metrics(metrics, damaged=lambda problem: None) if metrics.exists() else []
            return [bad, [m["loss"] for m in lines if m["step"] <= steps_done][-config.spike_steps :]]

        bad_steps, losses = on_first(ranks, known)
        self.num_left_out = len(bad_steps)
        self._num_in_a_row = next(k for k in range(len(bad_steps) + 1) if steps_done - k not in bad_steps)
        self._recent = deque(losses, maxlen=config.spike_steps)

    def may_take(self, step: int, loss: float, grad_norm: float, ids: StepIds, *, bad_ids: list[str]) -> bool:
        """Whether an update may be made of a step; says and logs what is wrong with it.

        step: from 1.  ids: of this rank's rows.  bad_ids: samples of them whose own loss is not finite.
        Raises: OSError where the log cannot be written.
        """
        if math.isfinite(loss) and math.isfinite(grad_norm):
            score = spike_score(loss, self._recent)
            if self._config.spike_score is not None and score > self._config.spike_score:
                at = {"loss": loss, "median": median(self._recent), "score": round(score, 2), "grad_norm": grad_norm}
                self._write(step, "spike", at, ids)
                self._say(
                    f"step {step}: loss {loss:.4f} is {score:.1f} deviations above the last {len(self._recent)} "
                    f"losses' median, {at['median']:.4f}; its samples: {self.path}"
                )
            self._recent.append(loss)
            self._num_in_a_row = 0
            return True
        self._num_in_a_row += 1
        if not self.is_over:
            self.num_left_out += 1
            told = self._ranks.gather(bad_ids)
            bad = list(dict.fromkeys(name for names in told for name in names))
            self._write(step, "not_finite", {"loss": repr(loss), "grad_norm": repr(grad_norm), "bad_ids": bad}, ids)
            self._say(
                f"step {step} is left out: loss is {loss}, gradient norm {grad_norm} "
                f"({self._num_in_a_row} in a row; {self._config.max_not_finite} end the run). "
                + (f"Not finite are: {few(bad)}. " if bad else "")
                + f"Its samples: {self.path}"
            )
        return False

    @property
    def is_over(self) -> bool:
        """Whether so many steps in a row were not finite that the run should end."""
        return self._num_in_a_row >= self._config.max_not_finite

    def all_ids(self, ids: StepIds) -> list[list[str]]:
        """The ids of a step's samples over all ranks, by its rows in their order."""
        rows = [row for rows in self._ranks.gather(ids, over="data") for row in rows]
        return [names for _, names in sorted(rows)]

    def _write(self, step: int, kind: str, at: Mapping[str, object], ids: StepIds) -> None:
        rows = self.all_ids(ids)
        if self._ranks.is_first:
            self._log.write({"step": step, "kind": kind, **at, "sample_ids": rows})
