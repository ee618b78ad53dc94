"""Masters: fp32 values under a bf16 model, gradients added up in fp32, and updates too small for bf16."""

import pytest
import torch
from torch import nn

from eagle_model.train.config import OptimizerConfig
from eagle_model.train.optimizer import Optimizer
from eagle_model.train.precision import Masters
from tests.train.test_optimizer import backward, model


def test_an_fp32_model_is_its_own_masters():
    net = model()
    masters = Masters(net, torch.float32)
    assert not masters.are_copies
    assert all(masters.by_name[name] is param for name, param in net.named_parameters())
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_masters_keep_what_bf16_loses_in_the_memory_it_had():
    net = model()
    before = {name: (param.data_ptr(), param.detach().clone()) for name, param in net.named_parameters()}
    masters = Masters(net, torch.bfloat16)
    assert masters.are_copies
    for name, param in net.named_parameters():
        address, value = before[name]
        assert masters.by_name[name].data_ptr() == address
        assert torch.equal(masters.by_name[name], value)
        assert torch.equal(param, value.bfloat16())
    assert not torch.equal(before["0.weight"][1], before["0.weight"][1].bfloat16().float())


def test_tied_parameters_stay_tied():
    net = nn.ModuleDict({"table": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    net["head"].weight = net["table"].weight
    masters = Masters(net, torch.bfloat16)
    assert net["head"].weight is net["table"].weight
    assert list(masters.by_name) == ["table.weight"]


def test_bf16_adds_gradients_in_fp32_and_keeps_small_updates():
    net = model()
    masters = Masters(net, torch.bfloat16)
    optimizer = Optimizer(masters, OptimizerConfig(learning_rate=1e-2, weight_decay=0.1, max_grad_norm=0.5))
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    backward(net, 0)
    first = {name: master.grad.clone() for name, master in masters.by_name.items()}
    backward(net, 1)
    second = {name: master.grad - first[name] for name, master in masters.by_name.items()}
    assert all(p.grad is None for p in net.parameters())
    assert all(grad.dtype == torch.float32 for grad in first.values())
    alone = model()
    only_second = Masters(alone, torch.bfloat16)
    backward(alone, 1)
    for name, grad in second.items():
        torch.testing.assert_close(grad, only_second.by_name[name].grad)

    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    before = {name: m.clone() for name, m in masters.by_name.items()}
    for _ in range(40):  # each update is far below a bf16 step of the weights, 40 of them are not
        for master in masters.by_name.values():
            master.grad = torch.ones_like(master)
        optimizer.step(1e-4)
    assert any((p != start[name]).any() for name, p in net.named_parameters())
    for name, p in net.named_parameters():
        moved = before[name] - masters.by_name[name]
        assert moved.min() > 3e-3, name  # 40 steps of about 1e-4 each
        assert torch.equal(p, masters.by_name[name].bfloat16())


def test_refuses_what_it_cannot_train():
    with pytest.raises(ValueError, match=r"0\.weight is torch\.bfloat16; needs torch\.float32 to take masters from"):
        Masters(model().bfloat16(), torch.bfloat16)
    with pytest.raises(ValueError, match="no parameter is trainable"):
        Masters(model().requires_grad_(False), torch.float32)
