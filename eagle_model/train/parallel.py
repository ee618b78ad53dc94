"""Parallelism: how many processes share a model's training, and how a model is laid over them.

    model = build(cfg)                           # names and shapes
    parallelize(model, Layout())                 # one process: everything here
    load(model, source)                          # the weights, where they belong

Between building and loading, because only then no process ever holds more than its share.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from eagle_model.model.eagle import Eagle


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Processes by what they share out. Raises ValueError for more than one of a kind: not trained so far."""

    data: int = 1  # rows of a step
    context: int = 1  # tokens of a row

    def __post_init__(self) -> None:
        for f in fields(self):
            if (size := getattr(self, f.name)) != 1:
                raise ValueError(f"Layout: {f.name} is {size}; needs 1, as training takes one process so far.")


def parallelize(model: Eagle, layout: Layout) -> Eagle:
    """The model, each process with its share of it. In a layout of one, that is all."""
    return model
