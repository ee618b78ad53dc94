"""AdamW of 8 bits, eagerly: torch.compile, which torchao asks for, takes minutes of C++ here and computes the same."""

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from eagle_model.model.config import tiny
from eagle_model.train.adamw8bit import flat, joined, shapes
from eagle_model.train.config import OptimizerConfig
from eagle_model.train.layout import Layout
from eagle_model.train.optimizer import Optimizer
from eagle_model.train.parallel import parallelize
from eagle_model.train.precision import Masters
from eagle_model.train.ranks import start
from tests.model.samples import small_model
from tests.ranks import run

pytest.importorskip("torchao")
CONFIG = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1)
WAYS = [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)]


@pytest.fixture(autouse=True)
def eager():
    with torch.compiler.set_stance("force_eager"):
        yield


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128), nn.Linear(128, 3))


def optimizer_of(net, dtype, stochastic):
    masters = Masters(net, dtype, stochastic=stochastic)
    return Optimizer(masters, CONFIG, in_8_bits=True, stochastic_rounding=stochastic)


def train(net, optimizer, steps):
    for step in steps:
        values = torch.randn(16, 64, generator=torch.Generator().manual_seed(step))
        net(values.to(next(net.parameters()).dtype)).square().sum().backward()
        optimizer.clip()
        optimizer.step(1e-2)


@pytest.mark.parametrize(("dtype", "stochastic"), WAYS)
def test_resume_is_exact_and_a_file_holds_plain_tensors(dtype, stochastic):
    straight = model()
    optimizer = optimizer_of(straight, dtype, stochastic)
    train(straight, optimizer, range(3))
    weights = {name: p.detach().clone() for name, p in straight.named_parameters()}
    written, rng = save(optimizer.state_dict()), torch.get_rng_state()
    train(straight, optimizer, range(3, 6))

    resumed = model()
    resumed.load_state_dict(weights)
    again = optimizer_of(resumed, dtype, stochastic)
    again.load_state_dict(load(written))
    torch.set_rng_state(rng)
    train(resumed, again, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    ours, theirs = optimizer.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert {key for key in ours if key.endswith(".0.weight")} == {
        "step.0.weight",
        *(f"{moment}_{part}.0.weight" for moment in ("exp_avg", "exp_avg_sq") for part in ("codes", "scale")),
        *(() if dtype == torch.float32 or stochastic else ("master.0.weight",)),
    }
    assert (ours["exp_avg_codes.0.weight"].dtype, ours["exp_avg_codes.0.weight"].shape) == (torch.uint8, (128, 64))
    assert ours["exp_avg_scale.0.weight"].shape == (128 * 64 // 256,)
    assert ours["exp_avg.1.weight"].dtype == torch.float32  # a small one stays as it is


@pytest.mark.parametrize(("dtype", "stochastic"), WAYS)
def test_it_trains_as_adamw_does(dtype, stochastic):
    exact, ours = model(), model()
    train(exact, Optimizer(Masters(exact, torch.float32), CONFIG), range(20))
    train(ours, optimizer_of(ours, dtype, stochastic), range(20))
    start = model()
    for (name, a), b, c in zip(exact.named_parameters(), ours.parameters(), start.parameters(), strict=True):
        error, way = (a - b.float()).norm(), (a - c).norm()
        assert error < 0.1 * way, (name, error / way)


def test_rounding_at_random_is_right_on_average_and_seeded():
    """Updates of a tenth of a bf16 step: rounded to nearest they would all be lost."""
    size, steps, lr = 4096 * 4, 20, 2.0**-9 / 10  # the bf16 step from 1 down is 2**-8 / 2

    def run(seed, stochastic=True):
        net = nn.Linear(size // 4, 4, bias=False)
        nn.init.ones_(net.weight)
        masters = Masters(net, torch.bfloat16, stochastic=stochastic)
        config = OptimizerConfig(learning_rate=lr, weight_decay=0.0, betas=(0.0, 0.0))
        optimizer = Optimizer(masters, config, in_8_bits=True, stochastic_rounding=stochastic)
        torch.manual_seed(seed)
        for _ in range(steps):
            net.weight.grad = torch.ones_like(net.weight)
            if not stochastic:
                masters.by_name["weight"].grad = torch.ones_like(masters.by_name["weight"])
            optimizer.step(lr)
        return net.weight.detach()

    moved = 1 - run(0).double()
    assert torch.unique(run(0)).numel() > 2
    # Each step moves a weight by 2**-9 with probability a tenth: mean and standard error of the mean of a binomial.
    want, sigma = steps * lr, 2.0**-9 * (steps * 0.1 * 0.9) ** 0.5 / size**0.5
    assert abs(moved.mean().item() - want) < 4 * sigma
    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_moments_that_are_no_8_bits_stay_as_they_are():
    moment = torch.randn(3)
    assert flat("exp_avg", moment)["exp_avg"] is moment
    assert joined({"exp_avg": moment, "step": torch.tensor(1.0)}).keys() == {"exp_avg", "step"}
    assert [shapes(key, (2, 512)) for key in ("step", "exp_avg", "exp_avg_codes", "exp_avg_scale", "master")] == [
        (), (2, 512), (2, 512), (4,), (2, 512),
    ]  # fmt: skip


def after_steps(seeds):
    """The rows of a replica after two steps, where its generator is not the other's, as after dropout."""
    ranks = start(Layout(replicate=2), "cpu")
    eagle = parallelize(small_model(tiny(vocab_size=97, image_token_id=96)), ranks, dtype=torch.bfloat16)
    masters = Masters(eagle, torch.bfloat16, stochastic=True)
    optimizer = Optimizer(masters, CONFIG, in_8_bits=True, stochastic_rounding=True)
    torch.manual_seed(seeds[ranks.rank])
    with torch.compiler.set_stance("force_eager"):
        for _ in range(2):
            for master in masters.by_name.values():
                master.grad = torch.ones_like(master)
            optimizer.step(1e-3)
    after = torch.rand(1).item()  # of the process's own generator
    return [after, *(float(master.double().square().sum()) for master in masters.by_name.values())]


def test_replicas_round_alike_whatever_else_they_draw():
    (after, *first), (other, *second) = run(after_steps, 2, (0, 1))
    assert first == second and after != other
