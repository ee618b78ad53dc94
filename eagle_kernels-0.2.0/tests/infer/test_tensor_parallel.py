"""A model whose heads two processes share says what it says alone."""

import copy

import pytest
import torch.distributed as dist

from eagle_model.infer.engine import Engine
from eagle_model.infer.forward import Forward
from eagle_model.infer.sampling import Sampling
from eagle_model.infer.tensor_parallel import cut, follow, tell
from eagle_model.train.layout import Layout
from eagle_model.train.ranks import start
from tests.infer.small import alone, ask, check_same, model, noise, processor, prompt_of
from tests.ranks import run

QUESTIONS = ["Where is it?", "What happens then? A cat, a red dog.", "A cat?"]


def answers() -> list[list[int]] | int:
    start(Layout(shard=2))
    group = dist.group.WORLD
    ours = copy.deepcopy(model())
    cut(ours, group)
    if group.rank():
        return follow(ours, Forward(ours, num_blocks=40).cache, group)
    engine = Engine(ours, processor(), cache_tokens=640, prefill_tokens=48)
    engine._forward.group = group
    images = [(), (noise(1),), ()]
    asked = [engine.submit(ask(q, *i), Sampling(max_new_tokens=6)) for q, i in zip(QUESTIONS, images, strict=True)]
    found = [list(request.result().token_ids) for request in asked]
    tell(group, None)
    return found


def test_two_processes_say_what_one_says():
    found, num_steps = run(answers, 2)
    assert num_steps >= 6
    for question, images, ids in zip(QUESTIONS, [(), (noise(1),), ()], found, strict=True):
        prompt = prompt_of(ask(question, *images), 6)
        check_same(model(), prompt, ids, alone(model(), prompt, 6))


class FourProcesses:
    def size(self) -> int:
        return 4

    def rank(self) -> int:
        return 0


def test_heads_that_cannot_be_shared_out_are_refused():
    with pytest.raises(ValueError, match="num_key_value_heads is 2; needs a multiple of the 4 processes"):
        cut(copy.deepcopy(model()), FourProcesses())  # type: ignore[arg-type]
