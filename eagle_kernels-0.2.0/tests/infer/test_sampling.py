"""Sampling: transformers' own processors leave the same probabilities; seeds, penalties and what is refused."""

import pytest
import torch
from transformers.generation import logits_process as theirs

from eagle_model.infer.sampling import Chosen, Sampler, Sampling, filtered

V = 50
LOGITS = 3 * torch.randn(V, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[3, 3, 7, 40]])


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "top_p": 1e-9},
        {"temperature": 0.8, "min_p": 0.1},
        {"temperature": 1.5, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 1.0, "top_k": 1000},
    ],
)
def test_as_transformers(options):
    scores = theirs.TemperatureLogitsWarper(options["temperature"])(IDS, LOGITS[None])
    if k := options.get("top_k"):
        scores = theirs.TopKLogitsWarper(k)(IDS, scores)
    if p := options.get("top_p"):
        scores = theirs.TopPLogitsWarper(p)(IDS, scores)
    if p := options.get("min_p"):
        scores = theirs.MinPLogitsWarper(p)(IDS, scores)
    torch.testing.assert_close(filtered(LOGITS, Sampling(**options)).softmax(0), scores[0].softmax(0))


def test_penalties():
    sampler = Sampler(Sampling(repetition_penalty=1.3), [3, 7], vocab_size=V)
    sampler.accept(40)
    want = theirs.RepetitionPenaltyLogitsProcessor(1.3)(IDS, LOGITS[None])[0]
    torch.testing.assert_close(sampler._changed(LOGITS), want)
    sampler = Sampler(Sampling(presence_penalty=0.5, frequency_penalty=0.25), [9], vocab_size=V)
    for token_id in (3, 3, 7):
        sampler.accept(token_id)
    want = LOGITS.clone()
    want[3] -= 0.5 + 2 * 0.25
    want[7] -= 0.5 + 0.25
    torch.testing.assert_close(sampler._changed(LOGITS), want)


def test_bias_makes_a_token_certain_or_impossible():
    best = int(LOGITS.argmax())
    assert Sampler(Sampling(logit_bias=((2, 100.0),)), [], vocab_size=V).choose(LOGITS).token_id == 2
    assert Sampler(Sampling(logit_bias=((best, -100.0),)), [], vocab_size=V).choose(LOGITS).token_id != best
    with pytest.raises(ValueError, match="logit_bias names token 50; needs ids from 0 to 49"):
        Sampler(Sampling(logit_bias=((50, 1.0),)), [], vocab_size=V)


def test_draws_have_the_probabilities_and_a_seed_repeats_them():
    sampling = Sampling(temperature=4.0, top_k=3, seed=5)

    def draws() -> list[int]:
        sampler = Sampler(sampling, [], vocab_size=V)
        return [sampler.choose(LOGITS).token_id for _ in range(3000)]

    found = torch.tensor(draws())
    assert found.tolist() == draws()
    shares = found.bincount(minlength=V) / len(found)
    torch.testing.assert_close(shares, filtered(LOGITS, sampling).softmax(0), atol=0.03, rtol=0)
    other = Sampler(Sampling(temperature=4.0, top_k=3), [], vocab_size=V)
    assert [other.choose(LOGITS).token_id for _ in range(50)] != found[:50].tolist()


def test_log_probabilities_are_of_the_raw_logits():
    one = Sampler(Sampling(temperature=5.0, seed=1, logprobs=2, logit_bias=((4, 9.0),)), [], vocab_size=V).choose(
        LOGITS
    )
    want = LOGITS.log_softmax(0)
    assert one.logprob == pytest.approx(float(want[one.token_id]))
    assert [i for i, _ in one.top] == LOGITS.topk(2).indices.tolist()
    assert Sampler(Sampling(), [], vocab_size=V).choose(LOGITS) == Chosen(int(LOGITS.argmax()))


def test_a_temperature_next_to_nothing_draws_the_likeliest():
    for temperature in (1e-5, 1e-30, 1e-300):
        sampler = Sampler(Sampling(temperature=temperature, top_p=0.9, min_p=0.1, seed=1), [], vocab_size=V)
        assert sampler.choose(LOGITS * 100).token_id == int(LOGITS.argmax())


class OnlyEven:
    def __init__(self) -> None:
        self.said: list[int] = []

    def mask(self, logits_V: torch.Tensor) -> None:
        logits_V[1::2] = -torch.inf

    def accept(self, token_id: int) -> None:
        self.said.append(token_id)


def test_a_guide_masks_and_hears_what_came():
    guide = OnlyEven()
    sampler = Sampler(Sampling(temperature=3.0, seed=2, json_schema="{}"), [], vocab_size=V, guide=guide)
    said = [sampler.choose(LOGITS).token_id for _ in range(20)]
    assert guide.said == said
    assert all(token_id % 2 == 0 for token_id in said)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature is -1; needs 0"),
        ({"temperature": float("nan")}, "temperature is nan; needs a finite number"),
        ({"top_p": 0}, "top_p is 0; needs a share above 0"),
        ({"top_k": -1}, "top_k is -1; needs 0"),
        ({"min_p": 2}, "min_p is 2; needs a share"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; needs a number above 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; needs None or at least 1"),
        ({"stop": ("",)}, r"stop is \(''\,\); needs at most 16 texts, none empty"),
        ({"logprobs": 21}, "logprobs is 21; needs None or 0 to 20"),
        ({"logit_bias": ((1, 1.0),) * 2000}, "logit_bias is .*; needs at most 1024 pairs"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=f"^Sampling: {message}"):
        Sampling(**options)
