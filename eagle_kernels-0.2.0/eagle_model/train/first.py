"""What one process does for all of them: the first, whose word the others take. And what each does, or none has done.

    folder = on_first(ranks, lambda: str(newest_checkpoint(run)))     # the same on every rank; None where it gave none
    rows = on_all(ranks, lambda: read(ranks.rank), otherwise=OSError)  # each rank's own; an error where one has one

What is read where processes might find different things, and what must be written once, goes through here. With one
process it is a plain call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from eagle_model.files import os_reason
from eagle_model.train.ranks import Ranks

Result = TypeVar("Result")


class FirstFailed(ValueError):
    """Raised on the other ranks where the first could not do what all needed; its own error says why."""


def on_first(ranks: Ranks, do: Callable[[], Result]) -> Result:
    """What `do` returns, which JSON can say, on every rank; all ranks make this call.

    Raises: on the first rank what `do` raises, on the others FirstFailed with its words.
    """
    if ranks.layout.processes == 1:
        return do()
    result, error = None, None
    if ranks.is_first:
        try:
            result = do()
        except Exception as caught:
            error = caught
    said, told = ranks.gather([error and f"{type(error).__name__}: {error}", result])[0]
    if error is not None:
        raise error
    if said is not None:
        raise FirstFailed(f"the first process failed: {said}")
    return told


def on_all(ranks: Ranks, do: Callable[[], Result], *, otherwise: type[Exception]) -> Result:
    """What `do` returns, on each rank its own; all ranks make this call.

    Raises: on a rank where `do` fails, what it raises; on the others `otherwise`, with the first such rank's words.
    """
    error: Exception | None = None
    try:
        result = do()
    except Exception as caught:
        error = caught
    told = ranks.gather(error and (os_reason(error) if isinstance(error, OSError) else str(error)))
    if error is not None:
        raise error
    for rank, problem in enumerate(told):
        if problem is not None:
            raise otherwise(f"process {rank}: {problem}")
    return result
