"""The engine: whatever else is going on, an answer has the tokens that the model alone would give it."""

import copy
import random
import threading

import pytest
import torch

from eagle_model.data.sample import DataError
from eagle_model.infer.engine import Engine, QueueFull
from eagle_model.infer.request import Request
from eagle_model.infer.sampling import Sampler, Sampling
from eagle_model.model import lora
from tests.infer.small import (
    CONTEXT,
    alone,
    ask,
    check_same,
    logits_after,
    model,
    noise,
    processor,
    prompt_of,
    some_messages,
)
from tests.video.make import draw, write_video


def engine(**sizes: int) -> Engine:
    return Engine(model(), processor(), **sizes)


def mixed(num: int, seed: int) -> None:
    """Requests that arrive at random, some of them cancelled, in a cache so small that they push each other out."""
    rng = random.Random(seed)
    ours = engine(
        cache_tokens=rng.choice([640, 1024]),
        max_running=rng.choice([3, 8]),
        prefill_tokens=rng.choice([7, 64, 1000]),
        encoder_tokens=32,
    )
    asked: list[tuple[Request, list[dict], int]] = []
    while len(asked) < num:
        for _ in range(rng.choice([0, 0, 1, 5])):
            messages, num_new = some_messages(rng), rng.randrange(1, 24)
            asked.append((ours.submit(messages, Sampling(max_new_tokens=num_new)), messages, num_new))
        if asked and rng.random() < 0.05:
            rng.choice(asked)[0].cancel()
        ours.step()
    num_whole = 0
    for request, messages, num_new in asked:
        answer, prompt = request.result(), prompt_of(messages, num_new)
        want = alone(model(), prompt, num_new)
        if answer.finish_reason == "cancelled":
            want = want[: len(answer.token_ids)]
        else:
            num_whole += 1
            assert answer.finish_reason == ("stop" if want[-1] in ours.processor.encoder.stop_token_ids else "length")
        check_same(model(), prompt, answer.token_ids, want)
    stats = ours.stats()
    assert num_whole > 0.7 * num
    assert (stats.running, stats.queued, stats.blocks_used) == (0, 0, 0)
    assert stats.prefix_hits > 0
    assert stats.requests_done == len(asked)


@pytest.mark.parametrize("seed", [0, 1])
def test_mixed_requests_say_what_each_says_alone(seed):
    mixed(25, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_200_mixed_requests_say_what_each_says_alone(seed):
    mixed(200, 100 + seed)


def test_whoever_is_pushed_out_goes_on_where_it_was():
    """Four answers that grow beyond the cache: the last to come waits, and says the same in the end."""
    ours = engine(cache_tokens=320, max_running=4)
    asked = [ours.submit(ask(f"{i} Where is it?"), Sampling(max_new_tokens=60)) for i in range(4)]
    for i, request in enumerate(asked):
        prompt = prompt_of(ask(f"{i} Where is it?"), 60)
        check_same(model(), prompt, request.result().token_ids, alone(model(), prompt, 60))
    assert ours.stats().preemptions > 0


def test_a_second_question_computes_its_text_alone(tmp_path, monkeypatch):
    """Of 20 and of many more tokens: the same frames, no call of the vision tower; and after the cache forgot."""
    film = tmp_path / "film.mp4"
    write_video(film, [draw(i) for i in range(50)], fps=25)
    ours = engine(cache_tokens=1024)

    def about(text: str) -> Request:
        parts = [{"type": "video", "video": str(film)}, {"type": "text", "text": text}]
        return ours.submit([{"role": "user", "content": parts}], Sampling(max_new_tokens=4), frames=4, fps=4)

    first = about("Where is it?")
    first.result()
    num_tiles = first.shown.num_tiles
    assert num_tiles == 4
    assert ours.stats().tiles_encoded == num_tiles
    second = about("Where " * 50)
    assert second.shown.media == first.shown.media
    second.result()
    assert ours.stats().tiles_encoded == num_tiles
    # All but the block in which the text begins.
    assert second.usage.cached_tokens >= first.usage.prompt_tokens - 16 - len("Where is it?")
    for i in range(6):  # others take all blocks
        ours.submit(ask(f"{i}" + "Where is it? " * 12), Sampling(max_new_tokens=100)).result()
    third = about("What happens then?")
    answer = third.result()
    assert third.usage.cached_tokens <= 32  # the system turn: others began alike
    assert ours.stats().tiles_encoded == num_tiles
    parts = [{"type": "video", "video": str(film)}, {"type": "text", "text": "What happens then?"}]
    prompt = ours._prompts.make([{"role": "user", "content": parts}], num_new=4, frames=4, fps=4)
    check_same(model(), prompt, answer.token_ids, alone(model(), prompt, 4))


def test_two_who_ask_at_once_share_what_they_have_in_common():
    ours = engine()
    picture = noise(1)
    one, two = (ours.submit(ask(text, picture), Sampling(max_new_tokens=3)) for text in ("Where?", "What?"))
    one.result(), two.result()
    assert ours.stats().tiles_encoded == one.shown.num_tiles
    assert two.usage.cached_tokens >= one.shown.num_tiles * 4


def test_a_thread_answers_many_threads():
    answers: dict[int, str] = {}
    with engine(max_running=4).start() as ours:

        def user(i: int) -> None:
            answers[i] = ours.submit(ask(f"{i}?"), Sampling(max_new_tokens=5, temperature=1.0, seed=i)).result().text

        users = [threading.Thread(target=user, args=(i,)) for i in range(8)]
        for thread in users:
            thread.start()
        for thread in users:
            thread.join()
    for i in (0, 5):
        again = engine().submit(ask(f"{i}?"), Sampling(max_new_tokens=5, temperature=1.0, seed=i)).result()
        assert answers[i] == again.text


def test_closing_ends_what_is_under_way():
    ours = engine().start()
    request = ours.submit(ask("Where?"), Sampling(max_new_tokens=400))
    ours.close()
    assert request.result().finish_reason in ("cancelled", "length", "stop")
    with pytest.raises(ValueError, match="it is closed"):
        ours.submit(ask("Where?"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_engine_fails_all_who_wait_are_told(monkeypatch):
    ours = engine()
    monkeypatch.setattr(ours, "_forward", lambda *_: 1 / 0)
    request = ours.start().submit(ask("Where?"))
    with pytest.raises(RuntimeError, match="the engine failed: division by zero"):
        request.result()
    ours._thread.join()
    with pytest.raises(ValueError, match="it is closed"):
        ours.submit(ask("Where?"))


def test_a_token_that_cannot_be_chosen_is_an_error_of_its_request_alone(monkeypatch):
    choose, ours = Sampler.choose, engine()

    def choose_or_fail(sampler: Sampler, logits_V: torch.Tensor):
        return 1 / 0 if sampler.sampling.seed == 13 else choose(sampler, logits_V)

    monkeypatch.setattr(Sampler, "choose", choose_or_fail)
    asked = [ours.submit(ask("Where?"), Sampling(max_new_tokens=4, temperature=1, seed=seed)) for seed in (1, 13, 1)]
    one, other = asked[0].result(), asked[2].result()
    assert one.token_ids == other.token_ids
    with pytest.raises(RuntimeError, match="the next token could not be chosen: division by zero"):
        asked[1].result()
    assert (ours.stats().blocks_used, ours.is_closed) == (0, False)


def test_a_full_queue_says_so():
    ours = engine(max_queued=2)
    ours.submit(ask("1")), ours.submit(ask("2"))
    with pytest.raises(QueueFull, match="2 requests wait already"):
        ours.submit(ask("3"))


def test_wrong_requests_are_errors_at_once():
    ours = engine(cache_tokens=100)
    assert ours.context_tokens == 96
    for messages, sampling, what in [
        (ask("Where?"), Sampling(max_new_tokens=96), "max_new_tokens is 96; the model's context is 96"),
        (ask("Where? " * 200), Sampling(), "needs at least 851 tokens and context_tokens is 72"),
        ([{"role": "user", "content": [{"type": "image", "image": "no.png"}]}], Sampling(), r"no\.png"),
        ([*ask("Where?"), {"role": "assistant", "content": "Here."}], Sampling(), "the last turn is the assistant's"),
    ]:
        with pytest.raises(DataError, match=what):
            ours.submit(messages, sampling)
    with pytest.raises(ValueError, match="adapter is 'mine'; this engine has none"):
        ours.submit(ask("Where?"), adapter="mine")
    for sizes, what in [
        ({"cache_tokens": 15}, "cache_tokens is 15; needs at least 16"),
        ({"max_running": 0}, "max_running is 0; needs at least 1"),
        ({"prefill_tokens": 0}, "prefill_tokens is 0; needs at least 1"),
    ]:
        with pytest.raises(ValueError, match=what):
            engine(**sizes)


def test_a_file_that_breaks_after_planning_is_an_error_of_its_request_alone(tmp_path):
    path = tmp_path / "page.png"
    noise(1).save(path)
    ours = engine()
    broken = ours.submit([{"role": "user", "content": [{"type": "image", "image": str(path)}]}])
    path.write_bytes(b"no picture")
    other = ours.submit(ask("Where?"), Sampling(max_new_tokens=3))
    with pytest.raises(DataError, match=r"page\.png"):
        broken.result()
    assert len(other.result().token_ids) == 3
    assert ours.stats().blocks_used == 0


def test_what_does_not_fit_is_shown_in_fewer_tiles_and_the_answer_says_so():
    ours = engine(cache_tokens=CONTEXT)
    few = ours.submit(ask("Where?", noise(1, 300, 200)), Sampling(max_new_tokens=2))
    many = ours.submit(ask("Where?", *(noise(i, 300, 200) for i in range(9))), Sampling(max_new_tokens=2))
    assert (few.shown.reduced, few.shown.note) == (False, "")
    assert many.shown.reduced
    assert "Fewer frames or tiles are shown than asked for" in many.shown.note
    assert many.shown.num_tokens + 2 <= CONTEXT
    assert len(many.result().token_ids) == 2


def test_log_probabilities_are_the_models_own():
    ours = engine(prefill_tokens=16)
    request = ours.submit(ask("Where is it?", noise(2)), Sampling(max_new_tokens=6, logprobs=3))
    answer = request.result()
    assert answer.logprobs is not None
    for i, one in enumerate(answer.logprobs):
        want_V = logits_after(model(), prompt_of(ask("Where is it?", noise(2)), 6), answer.token_ids[:i]).log_softmax(0)
        assert one.token_id == answer.token_ids[i] == one.top[0][0]
        torch.testing.assert_close(torch.tensor([p for *_, p in one.top]), want_V.topk(3).values, atol=1e-4, rtol=1e-4)


def test_each_request_has_its_own_adapter(tmp_path):
    """Adapters of both towers, beside the plain model and in one cache; none sees another's keys or tiles."""
    want = {None: alone(model(), prompt_of(ask("Where is it?", noise(2)), 8), 8)}
    ours = engine(prefill_tokens=40)
    for seed, name in enumerate(("one", "two")):
        adapted = copy.deepcopy(model())
        torch.manual_seed(seed)
        lora.add_lora(adapted, lora.LoraConfig(rank=4, alpha=64))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=0.1)
        lora.save_adapter(adapted, tmp_path / name)
        want[name] = alone(adapted.eval(), prompt_of(ask("Where is it?", noise(2)), 8), 8)
        ours.add_adapter(name, tmp_path / name)
    assert len({tuple(ids) for ids in want.values()}) == 3
    asked = [
        (name, ours.submit(ask("Where is it?", noise(2)), Sampling(max_new_tokens=8), adapter=name))
        for name in [None, "one", "two", None, "two", "one"]
    ]
    for name, request in asked:
        assert list(request.result().token_ids) == want[name]
    shared = ours._adapters["one"].llm.layers[0].mlp.down_proj.weight
    assert shared.data_ptr() == model().llm.layers[0].mlp.down_proj.weight.data_ptr()
    assert ours.model.adapter is None
    with pytest.raises(ValueError, match="'one' is there already"):
        ours.add_adapter("one", tmp_path / "one")


def test_warmed_up_it_is_ready():
    with engine().start() as ours:
        assert not ours.is_ready
        ours.warm_up()
        assert ours.is_ready
        assert ours.stats().tiles_encoded == 1
    small = engine(cache_tokens=32)
    small.warm_up()
    assert small.is_ready
