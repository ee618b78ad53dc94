"""The launches that `static_table` compiles: each op's kernels at the shapes of Eagle 2.5, one function an op."""

from __future__ import annotations

from bench.static_table import Case


def cases() -> list[Case]:
    return []
