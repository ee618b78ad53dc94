"""One request on an event loop: its answers' events, its failures, and its end, whoever goes when."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from eagle_model.infer.chat_request import parse_chat
from eagle_model.infer.chat_work import ChatWork, Inbox
from eagle_model.infer.fetch import RequestError
from eagle_model.infer.media import MediaLimits, MediaStore
from eagle_model.infer.metrics import ServerMetrics
from tests.infer.serving import small_engine

PICTURE = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAAAAAAALAAAAAABAAEAAAIBRAA7"


@pytest.fixture(scope="module")
def engine():
    with small_engine(max_queued=2).start() as engine:
        yield engine


def work(engine, tmp_path: Path, use, *, is_cancelled: bool = False, **fields):
    """What `use` makes of a request, and its metrics; the threads have ended, and no file is held."""
    store = MediaStore(tmp_path, MediaLimits())
    metrics = ServerMetrics(engine.stats, lambda: 0)
    content = [{"type": "image_url", "image_url": {"url": PICTURE}}, {"type": "text", "text": "Hello"}]
    asked = parse_chat({"messages": [{"role": "user", "content": content}], "max_tokens": 5} | fields)

    async def go():
        with ThreadPoolExecutor(1) as pool:
            made = ChatWork(engine, store, asked, pool, metrics, Inbox(asyncio.get_running_loop()))
            if is_cancelled:
                made.cancel()
            made.start()
            try:
                return await use(made)
            finally:
                made.cancel()
                await asyncio.wait_for(made.ended, 20)

    got = asyncio.run(go())
    assert [kept.users for kept in store._kept.values()] == [0]
    return got, metrics


async def read(made: ChatWork):
    requests = await made.begun()
    return requests, [came async for came in made.events()]


def test_events_of_all_answers_come_with_their_numbers(engine, tmp_path):
    (requests, came), metrics = work(engine, tmp_path, read, n=2, seed=3, temperature=2)
    for index, request in enumerate(requests):
        own = [event for number, event in came if number == index]
        assert [event.finish_reason for event in own] == [None] * (len(own) - 1) + [own[-1].finish_reason]
        assert "".join(event.text for event in own) == request.result().text
        assert request.sampling.seed == 3 + index
    num_tokens = sum(request.usage.completion_tokens for request in requests)
    assert metrics.completion_tokens._value.get() == num_tokens
    assert metrics.prompt_tokens._value.get() == requests[0].usage.prompt_tokens
    assert metrics.first_token._sum.get() > 0


def test_what_is_wrong_is_raised_where_the_request_begins(engine, tmp_path):
    async def begin(made):
        with pytest.raises(RequestError, match="context is 512") as raised:
            await made.begun()
        return raised.value.status

    assert work(engine, tmp_path, begin, max_tokens=4096)[0] == 400


def test_a_request_that_is_cancelled_ends_early(engine, tmp_path):
    async def leave(made):
        requests = await made.begun()
        made.cancel(is_late=True)
        return requests, [came async for came in made.events()]

    (requests, came), _ = work(engine, tmp_path, leave, max_tokens=400, logit_bias={"99": 100})
    assert came[-1][1].finish_reason == "cancelled" and requests[0].usage.completion_tokens < 400


def test_a_request_that_is_cancelled_before_it_begins_asks_nothing(engine, tmp_path):
    async def leave(made):
        with pytest.raises(RequestError, match="was cancelled"):
            await read(made)

    done = engine.stats().requests_done
    work(engine, tmp_path, leave, is_cancelled=True)
    assert engine.stats().requests_done == done


def test_a_failure_of_the_engine_is_raised_where_the_answer_is_read(monkeypatch, engine, tmp_path):
    submit = engine.submit

    def fail(*given, **more):
        request = submit(*given, **more)
        request.error = RuntimeError("no more memory")
        return request

    monkeypatch.setattr(engine, "submit", fail)

    async def expect(made):
        with pytest.raises(RuntimeError, match="no more memory"):
            await read(made)

    work(engine, tmp_path, expect)
