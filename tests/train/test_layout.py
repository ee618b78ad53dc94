"""Layouts: what they multiply to, which are refused, and what is advised instead."""

import pytest

from eagle_model.fields import ConfigError
from eagle_model.train.layout import Layout, check_layout


def test_sizes_multiply():
    layout = Layout(replicate=2, shard=8, context=8, ulysses=2)
    assert (layout.data, layout.processes) == (16, 128)
    assert str(layout) == "replicate=2 shard=8 context=8 ulysses=2"
    assert str(Layout()) == "one process"


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"shard": 0}, "shard is 0; needs 1 or more"),
        ({"context": 4, "ulysses": 3}, "ulysses is 3; needs a divisor of context, 4"),
        ({"ulysses": 2}, "ulysses is 2; needs a divisor of context, 1"),
    ],
)
def test_sizes_that_are_none(sizes, said):
    with pytest.raises(ConfigError, match=said):
        Layout(**sizes)


@pytest.mark.parametrize(
    ("layout", "num_processes", "rows_per_step", "said"),
    [
        (Layout(shard=4), 4, 8, None),
        (Layout(replicate=2, shard=2, context=4, ulysses=4), 16, 4, None),
        (
            Layout(shard=4, context=2),
            4,
            8,
            r"layout \(shard=4 context=2\) cannot work: it is for 8 processes, 1 x 4 x 2 \(replicate x shard x "
            r"context\); there are 4. The nearest that can: --set layout.shard=2, or start 8 processes",
        ),
        (
            Layout(shard=8),
            8,
            4,
            r"rows_per_step is 4; .* over 8 data ranks .* The nearest that can: --set layout.shard=4 --set "
            r"layout.context=2\.",
        ),
        (
            Layout(context=8, ulysses=8),
            8,
            1,
            r"ulysses is 8; the model's 28 query heads must be a multiple of it. .* --set layout.ulysses=4\.",
        ),
        (Layout(shard=3), 3, 1, "The nearest that can: --set layout.shard=1 --set layout.context=3"),
        (Layout(), 2, 1, "it is for 1 processes.* --set layout.context=2, or start 1 processes"),
    ],
)
def test_a_layout_that_cannot_work_is_refused_with_one_that_can(layout, num_processes, rows_per_step, said):
    counts = {"num_processes": num_processes, "rows_per_step": rows_per_step, "num_heads": 28, "num_kv_heads": 4}
    if said is None:
        return check_layout(layout, **counts)
    with pytest.raises(ConfigError, match=said):
        check_layout(layout, **counts)
