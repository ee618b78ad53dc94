"""NEFTune's noise: the formula's size in each document, the same from seed, step and row, and none in evaluation."""

import pytest
import torch

from eagle_model.model import config as model_config
from eagle_model.model.eagle import build
from eagle_model.train.neftune import Noise
from tests.train.chats import assert_equal, config_of, run, weights_of, write_chats

CU_SEQLENS = torch.tensor([0, 4, 104], dtype=torch.int32)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build(model_config.tiny(), "cpu").train()


def noise_of(model, *, step: int, row: int = 0) -> torch.Tensor:
    ids = torch.arange(104)
    model.noise.begin_row(CU_SEQLENS, step=step, row=row)
    return model.llm.embed_tokens(ids).detach() - model.llm.embed_tokens.weight[ids].detach()


def test_its_size_is_the_formula_s_in_each_document(model):
    model.noise = Noise(model, alpha=5.0, seed=3)
    noise = noise_of(model, step=7)
    for part, length in ((noise[:4], 4), (noise[4:], 100)):
        most = 5.0 / (length * 128) ** 0.5
        assert 0.97 * most < part.abs().max() <= most * 1.0001
        assert abs(part.mean()) < 0.1 * most
    assert part.std() == pytest.approx(most / 3**0.5, rel=0.02)


def test_seed_step_and_row_decide_it_and_nothing_else_moves(model):
    model.noise = Noise(model, alpha=5.0, seed=3)
    before = torch.get_rng_state()
    noise = noise_of(model, step=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(noise_of(model, step=7), noise)
    assert not torch.equal(noise_of(model, step=8), noise)
    assert not torch.equal(noise_of(model, step=7, row=1), noise)
    model.eval()
    assert noise_of(model, step=7).abs().max() == 0


def test_a_process_that_has_some_tokens_of_a_row_draws_the_noise_of_all(model):
    model.noise = Noise(model, alpha=5.0, seed=3)
    rows_R = torch.tensor([1, 2, 50, 103])
    model.noise.begin_row(CU_SEQLENS, step=7, row=4, rows_R=rows_R)
    share = model.llm.embed_tokens(rows_R).detach() - model.llm.embed_tokens.weight[rows_R].detach()
    assert torch.equal(share, noise_of(model, step=7, row=4)[rows_R])


def test_a_resumed_run_has_the_noise_of_one_that_was_never_interrupted(tmp_path):
    chats = write_chats(tmp_path)
    settings = ("neftune_alpha=5", "rows_per_step=2", "optimizer.schedule=constant")
    run(config_of(chats, *settings, "max_steps=2"), tmp_path / "run")
    run(config_of(chats, *settings), tmp_path / "run")
    run(config_of(chats, *settings), tmp_path / "straight")
    assert_equal(weights_of(tmp_path / "run", 4), weights_of(tmp_path / "straight", 4))
    run(config_of(chats, *settings[1:]), tmp_path / "without")
    without = weights_of(tmp_path / "without", 4)
    assert any(not torch.equal(without[name], w) for name, w in weights_of(tmp_path / "run", 4).items())
