"""The rows of an indexed data set: epoch after epoch, all samples as often as they are to be shown.

    epochs = Epochs(index, processor.config, seed=0, temperature=1.0, rows_per_step=64)
    row = next(epochs.rows_from(Place()))            # of schedule.py
    [epochs.plan(i).sample.id for i in row.samples]

It puts together what each decides alone: the index (which samples there are), mixing (who is shown), the schedule (who
shares a row), substitutes (who is shown instead). StreamedRows (stream.py) gives a loader the same of a stream.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Protocol

from eagle_model.data.index import Index, Skipped
from eagle_model.data.mixing import Mix
from eagle_model.data.processor import ProcessorConfig, SamplePlan
from eagle_model.data.sample import DataError
from eagle_model.data.schedule import Place, Schedule, ScheduledRow
from eagle_model.data.substitutes import Substitutes


class RowSource(Protocol):
    """Where a loader's rows come from; equal on all ranks. Samples are named by numbers."""

    @property
    def fingerprint(self) -> str:
        """Of all that decides the rows: a saved place means something only where it is the same."""

    @property
    def contents(self) -> str:
        """What there is to see and learn, in one sentence."""

    @property
    def skipped(self) -> Sequence[Skipped]:
        """What is known not to be shown before the first row."""

    @property
    def num_samples(self) -> int:
        """That an epoch shows; of a stream, that a block is made of."""

    def rows_from(self, place: Place, /) -> Iterator[ScheduledRow]:
        """All rows from this one on, without end."""

    def num_rows(self, epoch: int, /) -> int:
        """Of an epoch; of a stream, of the block that is being read."""

    def rows_left(self, place: Place, num_epochs: int, /) -> int:
        """From this one to the end of the first num_epochs epochs. Raises ValueError where nobody knows."""

    def plan(self, sample: int, /) -> SamplePlan: ...

    def num_tiles(self, samples: Sequence[int], /) -> int: ...

    def substitute(self, sample: int, attempt: int, /) -> int | None:
        """What is shown in a sample's place when it, and `attempt` substitutes before this one, cannot be."""

    def is_augmented(self, sample: int, /) -> bool: ...

    def close(self) -> None: ...


class Epochs:
    """Of an index. temperature: of mixing.  rows_per_step: as for Schedule."""

    def __init__(
        self, index: Index, config: ProcessorConfig, *, seed: int, temperature: float, rows_per_step: int
    ) -> None:
        self._index = index
        self._mix = Mix(
            index.source_of,
            repeats=[source.repeat_time for source in index.sources],
            weights=[source.weight for source in index.sources],
            temperature=temperature,
            seed=seed,
        )
        if not self._mix.num_shown:
            repeats = ", ".join(f"{source.name} {float(source.repeat_time):g}" for source in index.sources)
            raise DataError(
                f"an epoch shows none of the {index.num_samples} samples: of n samples n x repeat_time are shown, "
                f"rounded down, and repeat_time is: {repeats}. Raise it, or add samples."
            )
        self.schedule = Schedule(
            index.tokens,
            config.sampling.context_tokens,
            seed=seed,
            mix=self._mix,
            tiles_N=index.tiles,
            decode_seconds_N=index.decode_seconds,
            rows_per_step=rows_per_step,
        )
        self._substitutes = Substitutes(index.source_of, index.tokens, index.tiles)
        mixing = [[(source.weight, source.data_augment) for source in index.sources], temperature, rows_per_step]
        said = json.dumps([index.fingerprint(config, seed), mixing])
        self.fingerprint = hashlib.sha256(said.encode()).hexdigest()
        self.contents, self.num_samples = index.contents(), self._mix.num_shown
        self.skipped: Sequence[Skipped] = index.skipped
        self.rows_from, self.num_rows = self.schedule.rows_from, self.schedule.num_rows
        self.close = self.schedule.close
        self.plan, self.substitute = index.plan, self._substitutes.of

    def rows_left(self, place: Place, num_epochs: int) -> int:
        if place.epoch >= num_epochs:
            return 0
        return sum(map(self.num_rows, range(place.epoch, num_epochs))) - place.rows_before - place.row

    def num_tiles(self, samples: Sequence[int]) -> int:
        return int(self._index.tiles[list(samples)].sum())

    def is_augmented(self, sample: int) -> bool:
        return self._index.sources[self._index.source_of[sample]].data_augment
