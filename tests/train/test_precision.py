"""Masters: fp32 values under a bf16 model, gradients added up in fp32, and updates too small for bf16."""

import pytest
import torch
from torch import nn

from eagle_model.train.config import OptimizerConfig
from eagle_model.train.optimizer import Optimizer
from eagle_model.train.precision import Masters
from tests.train.test_optimizer import backward, model

CPU = torch.device("cpu")


def test_an_fp32_model_is_its_own_masters():
    net = model()
    masters = Masters(net, torch.float32)
    assert not masters.copies
    assert all(masters.by_name[name] is param for name, param in net.named_parameters())
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_masters_keep_what_bf16_loses_in_the_memory_it_had():
    net = model()
    before = {name: (param.data_ptr(), param.detach().clone()) for name, param in net.named_parameters()}
    masters = Masters(net, torch.bfloat16)
    assert masters.copies == masters.by_name.keys()
    for name, param in net.named_parameters():
        address, value = before[name]
        assert masters.by_name[name].data_ptr() == address
        assert torch.equal(masters.by_name[name], value)
        assert torch.equal(param, value.bfloat16())
    assert not torch.equal(before["0.weight"][1], before["0.weight"][1].bfloat16().float())


def test_masters_on_the_host_compute_the_same():
    """On a CPU the host is the device; that they are copies all the same shows the way that a GPU's would take."""
    nets = [model() for _ in range(2)]
    for net, on_host in zip(nets, (False, True), strict=True):
        masters = Masters(net, torch.bfloat16, host=CPU if on_host else None)
        optimizer = Optimizer(masters, OptimizerConfig(learning_rate=1e-2))
        for step in range(3):
            backward(net, step)
            backward(net, step + 3)
            optimizer.clip()
            optimizer.step(1e-2)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    masters = Masters(model(), torch.float32, host=CPU)
    assert not masters.copies  # nothing to copy where the weights are on the host themselves


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masters_of_a_gpu_on_the_host(dtype):
    """The same as on the device, up to the rounding of another machine's AdamW; nothing of theirs is on the device."""
    nets = [model().cuda() for _ in range(2)]
    for net, on_host in zip(nets, (False, True), strict=True):
        masters = Masters(net, dtype, host=CPU if on_host else None)
        optimizer = Optimizer(masters, OptimizerConfig(learning_rate=1e-2))
        for step in range(3):
            values = torch.randn(5, 6, generator=torch.Generator().manual_seed(step)).cuda()
            net(values.to(dtype)).square().sum().backward()
            assert not on_host or all(p.grad is None for p in net.parameters())
            optimizer.clip()
            optimizer.step(1e-2)
        assert not on_host or {t.device.type for t in optimizer.state_dict().values()} == {"cpu"}
    for (_, a), (_, b) in zip(nets[0].named_parameters(), nets[1].named_parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_rounding_at_random_leaves_matrices_without_a_master():
    net = model()
    masters = Masters(net, torch.bfloat16, stochastic=True)
    assert masters.copies == {"0.bias", "1.weight", "1.bias", "2.bias"}
    assert masters.by_name["0.weight"] is net[0].weight
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    assert {masters.by_name[name].dtype for name in masters.copies} == {torch.float32}
    backward(net, 0)
    backward(net, 1)
    assert net[0].weight.grad.dtype == torch.bfloat16
    assert masters.by_name["0.bias"].grad.dtype == torch.float32
    assert net[0].bias.grad is None


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
