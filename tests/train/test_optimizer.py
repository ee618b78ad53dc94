"""The learning rate's golden curve, AdamW against torch on fp32, masters under bf16, and exact resume."""

import math

import pytest
import torch
from torch import nn

from eagle_model.train.config import OptimizerConfig
from eagle_model.train.optimizer import Optimizer, learning_rate
from eagle_model.train.precision import Masters


def test_golden_learning_rates():
    config = OptimizerConfig(learning_rate=1.0, warmup_ratio=0.2)
    got = [learning_rate(config, step, 10) for step in range(10)]
    cosine = [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
    assert got == pytest.approx([0.5, 1.0, *cosine])
    assert cosine[2] == pytest.approx(0.853553)
    assert cosine[4] == pytest.approx(0.5)
    assert learning_rate(config, 10, 10) == 0


def test_learning_rate_edges():
    floor = OptimizerConfig(learning_rate=2.0, warmup_ratio=0.0, min_lr_ratio=0.1)
    assert learning_rate(floor, 0, 100) == 2.0
    assert learning_rate(floor, 50, 100) == pytest.approx(0.2 + 1.8 / 2)
    assert learning_rate(floor, 100, 100) == pytest.approx(0.2) == learning_rate(floor, 1000, 100)
    paper = OptimizerConfig(learning_rate=2e-5, warmup_ratio=0.03)
    assert learning_rate(paper, 29, 1000) == 2e-5 == learning_rate(paper, 30, 1000)
    assert learning_rate(paper, 0, 1000) == pytest.approx(2e-5 / 30)
    assert learning_rate(OptimizerConfig(learning_rate=1.0, warmup_ratio=1.0), 3, 4) == 1.0
    assert learning_rate(OptimizerConfig(learning_rate=1.0), 0, 1) == 1.0  # a run of one step


def test_agrees_with_transformers_schedule_after_the_warmup():
    transformers = pytest.importorskip("transformers")
    parameter = nn.Parameter(torch.zeros(()))
    schedule = transformers.get_cosine_schedule_with_warmup(torch.optim.SGD([parameter], lr=3.0), 5, 50)
    (lr_of,) = schedule.lr_lambdas
    config = OptimizerConfig(learning_rate=3.0, warmup_ratio=0.1)
    for step in range(5, 50):
        assert learning_rate(config, step, 50) == pytest.approx(3 * lr_of(step))
    for step in range(5):  # ours is one step ahead, so that the first step moves
        assert learning_rate(config, step, 50) == pytest.approx(3 * lr_of(step + 1))


def test_golden_schedules():
    def curve(**changes) -> list[float]:
        config = OptimizerConfig(learning_rate=1.0, warmup_ratio=0.2, **changes)
        return [learning_rate(config, step, 10) for step in range(11)]

    assert curve(schedule="constant") == [0.5] + [1.0] * 10
    assert curve(schedule="linear") == pytest.approx([0.5, 1.0, 1.0, *(1 - k / 8 for k in range(1, 9))])
    assert curve(schedule="wsd", decay_ratio=0.4) == pytest.approx([0.5] + [1.0] * 6 + [0.75, 0.5, 0.25, 0.0])
    floor = curve(schedule="wsd", decay_ratio=0.4, min_lr_ratio=0.2)
    assert floor == pytest.approx([0.5] + [1.0] * 6 + [0.8, 0.6, 0.4, 0.2])
    assert curve(schedule="wsd", decay_ratio=0.8) == pytest.approx(curve(schedule="linear"))
    assert curve(schedule="cosine") == curve()


def test_parts_have_learning_rates_of_their_own():
    """Ten times the rate for a part is ten times the rate: as two optimizers of torch would have it."""
    ours, theirs = model(), model()
    optimizer = Optimizer(Masters(ours, torch.float32), CONFIG, multiplier=lambda name: 10.0 if name[0] == "2" else 1.0)
    adamw = [torch.optim.AdamW([p], lr=lr, weight_decay=decay) for p, lr, decay in (
        (theirs[0].weight, 1e-2, 0.1), (theirs[2].weight, 1e-1, 0.1), (theirs[2].bias, 1e-1, 0.0),
    )]  # fmt: skip
    for step in range(3):
        backward(ours, step)
        backward(theirs, step)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.clip()
        optimizer.step(1e-2)
        for one in adamw:
            one.step()
        theirs[0].bias.data, theirs[1].weight.data, theirs[1].bias.data = (
            p.data.clone() for p in (ours[0].bias, ours[1].weight, ours[1].bias)
        )
        theirs.zero_grad()
    for name in ("0.weight", "2.weight", "2.bias"):
        torch.testing.assert_close(ours.get_parameter(name), theirs.get_parameter(name))


def test_the_mass_is_taken_out_of_the_gradients_before_they_are_clipped():
    nets = model(), model()
    norms = []
    for net, mass in zip(nets, (None, torch.tensor(4.0)), strict=True):
        optimizer = Optimizer(Masters(net, torch.float32), CONFIG)
        backward(net, 0)
        if mass is not None:
            for parameter in net.parameters():
                parameter.grad *= 4
        norms.append(optimizer.clip(mass))
        optimizer.step(1e-2)
    torch.testing.assert_close(*norms)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)
    net = model()
    backward(net, 0)
    assert torch.isfinite(Optimizer(Masters(net, torch.float32), CONFIG).clip(torch.zeros(())))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))


CONFIG = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1, max_grad_norm=0.5)


def backward(net: nn.Module, seed: int) -> None:
    values = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
    net(values.to(next(net.parameters()).dtype)).square().sum().backward()


def test_fp32_is_torch_adamw_with_decay_on_matrices_alone():
    ours, theirs = model(), model()
    optimizer = Optimizer(Masters(ours, torch.float32), CONFIG)
    decayed = [p for n, p in theirs.named_parameters() if n in ("0.weight", "2.weight")]
    others = [p for n, p in theirs.named_parameters() if n not in ("0.weight", "2.weight")]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1e-2)
    for step in range(3):
        backward(ours, step)
        backward(theirs, step)
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        assert norm > 0.5
        torch.testing.assert_close(optimizer.clip(), norm)
        optimizer.step(1e-2)
        adamw.step()
        adamw.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)
        assert a.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_is_exact(dtype):
    straight = model()
    optimizer = Optimizer(Masters(straight, dtype), CONFIG)
    for step in range(3):
        backward(straight, step)
        optimizer.clip()
        optimizer.step(1e-2)
    weights = {name: p.detach().clone() for name, p in straight.named_parameters()}
    state = {key: value.clone() for key, value in optimizer.state_dict().items()}

    resumed = model()
    resumed.load_state_dict(weights)
    again = Optimizer(Masters(resumed, dtype), CONFIG)
    again.load_state_dict(state)
    for net, opt in ((straight, optimizer), (resumed, again)):
        for step in range(3, 6):
            backward(net, step)
            opt.clip()
            opt.step(1e-2)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    ours, theirs = optimizer.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_frozen_parameter_stays_and_has_no_state():
    net = model()
    net[0].requires_grad_(False)
    before = net[0].weight.clone()
    optimizer = Optimizer(Masters(net, torch.bfloat16), CONFIG)
    backward(net, 0)
    optimizer.step(1e-2)
    assert torch.equal(net[0].weight, before.bfloat16())
    assert {key.partition(".")[2] for key in optimizer.state_dict()} == {"1.weight", "1.bias", "2.weight", "2.bias"}


def test_state_of_another_model_is_refused():
    net = model()
    optimizer = Optimizer(Masters(net, torch.float32), CONFIG)
    backward(net, 0)
    optimizer.step(1e-2)
    state = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"exp_avg\.9\.weight belongs to no trainable parameter"):
        optimizer.load_state_dict({"exp_avg.9.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"exp_avg\.0\.weight has shape \(2, 2\); the model needs \(8, 6\)"):
        optimizer.load_state_dict(state | {"exp_avg.0.weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=r"0\.weight has no master; training in this dtype needs one"):
        Optimizer(Masters(model(), torch.bfloat16), CONFIG).load_state_dict(state)


def test_no_gradient_counts_as_zero():
    """After rows of text alone the vision tower has none in one process, and one of zeros in several: one result."""
    nets = model(), model()
    optimizers = [Optimizer(Masters(net, torch.float32), CONFIG) for net in nets]
    for step in range(3):
        for net, optimizer, zero in zip(nets, optimizers, (None, torch.zeros(8, 6)), strict=True):
            backward(net, step)
            if step != 1:
                net[0].weight.grad = None if zero is None else zero.clone()
            optimizer.clip()
            optimizer.step(1e-2)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    assert not torch.equal(nets[0][0].weight, model()[0].weight)
