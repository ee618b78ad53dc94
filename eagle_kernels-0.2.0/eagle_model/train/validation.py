"""The loss on data that are not trained on; which step had the lowest; and whether it is time to stop.

    validation = Validation(config, processor, run, steps_done=0)
    if validation.is_due(step, is_last=False):
        validation.validate(model, step)         # a line of RUN/validation.jsonl
    validation.best_step, validation.is_over     # RUN/checkpoints/best-<step> is that step's (checkpoint.py)

The loss is that of training, of all held-out rows as one step, with the model in evaluation mode. Its data have a
loader of their own that starts anew each time, and nothing draws from a generator: the number depends on the weights
alone, and training goes on as if there had been no validation.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eagle_model.data.loader import Loader
from eagle_model.data.processor import Processor
from eagle_model.model.eagle import Eagle
from eagle_model.model.loss import sqrt_mass
from eagle_model.train.config import TrainConfig
from eagle_model.train.context_parallel import share
from eagle_model.train.layout import Layout
from eagle_model.train.precision import DTYPES
from eagle_model.train.ranks import Ranks, start
from eagle_model.train.step_log import StepLog

LOG = "validation.jsonl"


class Validation:
    """Of one run. Its state goes into the checkpoints: `state_dict`."""

    def __init__(
        self,
        config: TrainConfig,
        processor: Processor,
        run_folder: Path,
        *,
        steps_done: int,
        ranks: Ranks | None = None,
    ) -> None:
        """Raises DataError as `Loader` does, when the held-out data cannot be read."""
        assert config.validation is not None
        self._config, self._train_config = config.validation, config
        # All held-out samples, each as often as their recipe says, however training's are taken.
        data = replace(config.data, recipe=config.validation.recipe, seed=0, streaming=False, temperature=1.0)
        self._ranks = ranks = ranks or start(Layout(), "cpu")
        self._loader = Loader(data, processor, share=ranks)
        self._begin = self._loader.state_dict()
        self._log = StepLog(run_folder / LOG, steps_done=steps_done) if ranks.is_first else None
        self.best_loss, self.best_step, self._num_since = math.inf, 0, 0
        self._last = (0, math.inf)

    def is_due(self, step: int, *, is_last: bool) -> bool:
        """Whether to validate after `step` steps."""
        return is_last or step % self._config.every_steps == 0

    def validate(self, model: Eagle, step: int, before_row: Callable[[], object] = lambda: None) -> bool:
        """Computes the loss after `step` steps and logs it; returns whether it is the lowest so far. before_row is
        called before each row. All ranks take part.

        Raises DataError when a row cannot be loaded and the policy for bad samples is to raise; OSError when the log
        cannot be written.
        """
        begin = time.perf_counter()
        loss, num_rows = self.loss(model, before_row)
        is_lower = loss < self.best_loss - self._config.min_improvement
        if is_lower:
            self.best_loss, self.best_step, self._num_since = loss, step, 0
        else:
            self._num_since += 1
        seconds = time.perf_counter() - begin
        self._last = (step, loss)
        logged = loss if math.isfinite(loss) else None
        if self._log is not None:
            self._log.write({"step": step, "loss": logged, "num_rows": num_rows, "seconds": round(seconds, 3)})
        return is_lower

    def loss(self, model: Eagle, before_row: Callable[[], object] = lambda: None) -> tuple[float, int]:
        """The loss on the held-out rows, in nats a token, and how many rows there were."""
        device = model.lm_head.weight.device
        one, per = torch.ones((), device=device), self._train_config.loss_per
        total, mass = torch.zeros_like(one), torch.zeros_like(one)
        was_training, num_rows = model.training, 0
        self._loader.load_state_dict(self._begin)
        model.eval()
        try:
            with torch.no_grad():
                for row in self._loader.step(min(self._loader.rows_left(1), self._config.max_rows or sys.maxsize)):
                    before_row()
                    context = share(row.batch, model, self._ranks)
                    batch = row.batch.to(device, dtype=DTYPES[self._train_config.dtype])
                    total += model(batch, one, loss_per=per, context=context)
                    mass += sqrt_mass(batch.labels_T, batch.cu_seqlens, per=per)
                    num_rows += bool(batch.sample_ids)
        finally:
            model.train(was_training)
            self._loader.load_state_dict(self._begin)  # ends what is being read ahead
        total, mass = self._ranks.total(total, over="all"), self._ranks.total(mass)
        return _ratio(total, mass), sum(self._ranks.gather(num_rows, over="data"))

    @property
    def summary(self) -> str:
        """The last validation in a line for the terminal."""
        since = f", the lowest of step {self.best_step}" if self._num_since else ", the lowest so far"
        return f"step {self._last[0]}  held-out loss {self._last[1]:.4f}{since}"

    @property
    def is_over(self) -> bool:
        """Whether `patience` validations in a row have found no lower loss."""
        return self._config.patience is not None and self._num_since >= self._config.patience

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        best_loss = self.best_loss if self.best_step else None
        return {**self._data(), "best_loss": best_loss, "best_step": self.best_step, "num_since": self._num_since}

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Goes on where the state was taken; False, and nothing changes, when it is of other held-out data."""
        if any(state[name] != value for name, value in self._data().items()):
            return False
        self.best_loss = math.inf if state["best_loss"] is None else state["best_loss"]
        self.best_step, self._num_since = state["best_step"], state["num_since"]
        return True

    def close(self) -> None:
        """Ends the loader's threads."""
        self._loader.close()

    def _data(self) -> dict[str, Any]:
        return {"data": self._begin["data"], "max_rows": self._config.max_rows}


def _ratio(total: Tensor, mass: Tensor) -> float:
    """nan where nothing is supervised, which is no loss at all."""
    return total.item() / mass.item() if mass.item() > 0 else math.nan
