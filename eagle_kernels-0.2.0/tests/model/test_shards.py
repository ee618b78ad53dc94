"""Cut parameters: whose rows are whose. What several processes compute with them: tests/train/test_parallel.py."""

import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from eagle_model.model.shards import cast_, fill, group_of, is_cut, own, put, replicas_of, rows_of, whole
from eagle_model.train.layout import Layout
from eagle_model.train.ranks import start
from tests.ranks import run


def test_what_is_not_cut_is_all_here():
    layer = nn.Linear(3, 5)
    weight = layer.weight
    assert not is_cut(weight) and own(weight) is weight and whole(weight) is weight
    assert rows_of(weight) == (0, 5) and group_of(weight) is replicas_of(weight) is None
    put(layer, "weight", torch.ones(5, 3, dtype=torch.float64))
    assert layer.weight.dtype == torch.float64 and layer.weight.requires_grad
    weight = layer.weight
    cast_(weight, torch.bfloat16)
    assert layer.weight is weight and weight.dtype == torch.bfloat16


def cut_layer(num_rows):
    from torch.distributed.fsdp import fully_shard

    with torch.device("meta"):
        layer = nn.Linear(3, num_rows)
    return fully_shard(layer, mesh=start(Layout(shard=dist.get_world_size()), "cpu").mesh)


def rows_on_each(num_rows):
    found = []
    for rank in range(4):
        dist.init_process_group("fake", rank=rank, world_size=4, store=FakeStore())
        weight = cut_layer(num_rows).weight
        found.append([*rows_of(weight), len(own(weight))])
        dist.destroy_process_group()
    return found


def test_runs_of_rows_are_equal_but_the_last():
    assert run(rows_on_each, 1, 10)[0] == [[0, 3, 3], [3, 6, 3], [6, 9, 3], [9, 10, 1]]
    assert run(rows_on_each, 1, 5)[0] == [[0, 2, 2], [2, 4, 2], [4, 5, 1], [5, 5, 0]]


def drawn():
    """A layer with numbers of a seed, on two processes; its weight in another dtype."""
    layer = cut_layer(5)

    def draw(module):
        module.reset_parameters()
        return True

    torch.manual_seed(3)
    fill(layer, [draw, draw], dtype=torch.float64)
    weight = layer.weight
    there = whole(weight.detach()).tolist()
    cast_(weight, torch.bfloat16)
    same = [layer.weight is weight, str(weight.dtype), str(own(weight).dtype), group_of(weight).size()]
    return [there, same, len(own(layer.bias))]


def test_new_numbers_are_those_of_one_process():
    layer = nn.Linear(3, 5)
    torch.manual_seed(3)
    layer.reset_parameters()
    layer.reset_parameters()
    for rank, (there, same, num_biases) in enumerate(run(drawn, 2)):
        assert there == layer.weight.double().tolist()
        assert same == [True, "torch.bfloat16", "torch.bfloat16", 2]
        assert num_biases == (3, 2)[rank]
