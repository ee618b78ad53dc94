"""infer/endpoint.py: what is sent, what is asked again, and what it may cost."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from eagle_model.data.sample import DataError
from eagle_model.fields import ConfigError
from eagle_model.infer.endpoint import Budget, BudgetReached, Endpoint, EndpointConfig, EndpointError, RequestRefused
from eagle_model.infer.json_answers import JsonAnswerError
from tests.data.conftest import write_video

Handler = Callable[[httpx2.Request], httpx2.Response]
CONFIG = EndpointConfig(
    url="http://server/v1",
    model="m",
    dollars_per_million_prompt_tokens=1.0,
    dollars_per_million_answer_tokens=10.0,
    max_retries=3,
)


def answer(text: str = "yes") -> httpx2.Response:
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return httpx2.Response(
        200, json={"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage}
    )


def serve(handler: Handler, config: EndpointConfig = CONFIG, **options: object) -> tuple[Endpoint, list[float]]:
    pauses: list[float] = []
    return Endpoint(config, transport=httpx2.MockTransport(handler), sleep=pauses.append, **options), pauses  # type: ignore[arg-type]


def in_turn(*responses: httpx2.Response | Exception) -> Handler:
    rest = list(responses)

    def handle(_: httpx2.Request) -> httpx2.Response:
        response = rest.pop(0)
        if isinstance(response, Exception):
            raise response
        return response

    return handle


def test_an_answer_has_its_text_its_price_and_the_servers_whole_response() -> None:
    seen: list[httpx2.Request] = []
    endpoint, _ = serve(lambda request: seen.append(request) or answer())
    reply = endpoint.ask("Is it?", max_tokens=5, seed=7)
    assert (reply.text, reply.prompt_tokens, reply.answer_tokens, reply.num_tries) == ("yes", 100, 10, 1)
    assert reply.dollars == pytest.approx(100e-6 + 100e-6)
    assert reply.raw["choices"][0]["message"]["content"] == "yes"
    assert str(seen[0].url) == "http://server/v1/chat/completions"
    assert json.loads(seen[0].content) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Is it?"}],
        "max_tokens": 5,
        "temperature": 0.0,
        "seed": 7,
    }


def test_the_key_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    seen: list[httpx2.Request] = []
    config = EndpointConfig(url="http://server/v1", model="m", api_key_env="MY_KEY")
    endpoint, _ = serve(lambda request: seen.append(request) or answer(), config)
    endpoint.ask("?")
    assert seen[0].headers["Authorization"] == "Bearer secret"


def test_an_image_travels_small_and_as_jpeg(tmp_path: Path) -> None:
    Image.new("RGB", (2000, 1000), (200, 30, 30)).save(tmp_path / "a.png")
    endpoint, _ = serve(lambda request: answer(), root=tmp_path)
    body = endpoint.request([{"role": "user", "content": [{"type": "image", "image": "a.png"}, "What?"]}])
    image, text = body["messages"][0]["content"]
    head, data = image["image_url"]["url"].split(",")
    assert head == "data:image/jpeg;base64" and text == {"type": "text", "text": "What?"}
    opened = Image.open(io.BytesIO(base64.b64decode(data)))
    assert opened.size == (512, 256) and abs(opened.getpixel((9, 9))[0] - 200) < 5


def test_a_video_travels_as_frames_with_their_times(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4")  # 2 s
    config = EndpointConfig(url="http://server/v1", model="m", frames_per_second=1.0, max_frames=3, image_px=64)
    endpoint, _ = serve(lambda request: answer(), config, root=tmp_path)
    part = {"type": "video", "video": "clip.mp4", "start": 0.0, "end": 2.0}
    sent = endpoint.request([{"role": "user", "content": [part]}])["messages"][0]["content"]
    assert [p["type"] for p in sent] == ["text", "image_url"] * 2
    assert all(p["text"].endswith(" s:") for p in sent[::2])


def test_a_part_that_is_none_is_refused() -> None:
    endpoint, _ = serve(lambda request: answer())
    with pytest.raises(DataError, match="needs the type text, image or video"):
        endpoint.ask([{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}])


@pytest.mark.parametrize(
    "trouble",
    [
        httpx2.Response(500, text="no"),
        httpx2.Response(503),
        httpx2.Response(520),  # to 524: of a gateway before the server
        httpx2.Response(524),
        httpx2.Response(429),
        httpx2.ConnectError("down"),
        httpx2.ReadTimeout("slow"),
        httpx2.RemoteProtocolError("cut"),
        httpx2.Response(200, text="<html>"),
        httpx2.Response(200, json={"choices": []}),
    ],
    ids=["500", "503", "520", "524", "429", "down", "slow", "cut", "html", "empty"],
)
def test_what_may_pass_is_asked_again(trouble: httpx2.Response | Exception) -> None:
    endpoint, pauses = serve(in_turn(trouble, trouble, answer()))
    assert endpoint.ask("?").num_tries == 3
    assert len(pauses) == 2 and 0.5 <= pauses[0] <= 1.0 <= pauses[1] <= 2.0
    assert endpoint.budget.num_requests == 1


def test_a_server_says_how_long_to_wait() -> None:
    endpoint, pauses = serve(in_turn(httpx2.Response(429, headers={"Retry-After": "7"}), answer()))
    endpoint.ask("?")
    assert pauses[0] == 7.0


def test_a_server_that_stays_away_is_named() -> None:
    endpoint, _ = serve(in_turn(*[httpx2.Response(500, text="out of order")] * 4))
    with pytest.raises(EndpointError, match="no answer after 4 tries: HTTP 500: out of order"):
        endpoint.ask("?")


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 501])
def test_what_cannot_pass_is_said_at_once(status: int) -> None:
    endpoint, pauses = serve(in_turn(httpx2.Response(status, text="no such model")))
    with pytest.raises(EndpointError, match=f"refuses: HTTP {status}: no such model"):
        endpoint.ask("?")
    assert not pauses


def test_an_empty_account_is_not_waited_for() -> None:
    endpoint, pauses = serve(in_turn(httpx2.Response(429, json={"error": {"code": "insufficient_quota"}})))
    with pytest.raises(EndpointError, match="insufficient_quota"):
        endpoint.ask("?")
    assert not pauses


def test_a_schema_is_sent_and_checked() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    seen: list[dict] = []
    replies = in_turn(answer('{"n": 3}'), answer('{"n": "three"}'))
    endpoint, _ = serve(lambda request: seen.append(json.loads(request.content)) or replies(request))
    assert endpoint.ask("?", json_schema=schema).json == {"n": 3}
    assert seen[0]["response_format"]["json_schema"]["schema"] == schema
    with pytest.raises(JsonAnswerError, match=r"answer\.n is") as error:
        endpoint.ask("?", json_schema=schema)
    assert error.value.reply.text == '{"n": "three"}'  # it was paid for, and is not lost


def test_a_model_that_thinks_and_refuses_what_others_take() -> None:
    seen: list[dict] = []
    config = EndpointConfig(
        url="http://server/v1", model="m", max_tokens_name="max_completion_tokens", thinking_tokens=2000,
        leave_out=("temperature", "seed"), dollars_per_million_answer_tokens=1e6,
    )  # fmt: skip
    endpoint, _ = serve(lambda request: seen.append(json.loads(request.content)) or answer(), config)
    endpoint.ask("?", max_tokens=64, temperature=0.7, seed=3)
    assert set(seen[0]) == {"model", "messages", "max_completion_tokens"}
    assert seen[0]["max_completion_tokens"] == 2064 == endpoint.price(seen[0])  # what it thinks is set aside, too


def test_a_server_that_knows_no_limits_of_lengths_is_sent_none() -> None:
    text = {"type": "string", "minLength": 1, "maxLength": 3}
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": text, "minItems": 1}}, "required": ["a"]}
    seen: list[dict] = []
    config = EndpointConfig(url="http://server/v1", model="m", structured="json_shape")
    replies = in_turn(answer('{"a": ["abc"]}'), answer('{"a": ["abcd"]}'))
    endpoint, _ = serve(lambda request: seen.append(json.loads(request.content)) or replies(request), config)
    assert endpoint.ask("?", json_schema=schema).json == {"a": ["abc"]}
    sent = seen[0]["response_format"]["json_schema"]["schema"]
    plain = {"type": "array", "items": {"type": "string"}}
    assert sent == {"type": "object", "properties": {"a": plain}, "required": ["a"]}
    with pytest.raises(JsonAnswerError, match="needs 1 to 3"):  # which is checked here all the same
        endpoint.ask("?", json_schema=schema)


def test_a_message_in_chunks_is_its_text() -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "A or B?"}]}
    chunks = [thinking, {"type": "text", "text": "B"}, {"type": "text", "text": "."}]
    endpoint, pauses = serve(in_turn(answer(chunks)))  # type: ignore[arg-type]
    assert endpoint.ask("?").text == "B." and not pauses


def test_no_more_requests_than_the_budget_has() -> None:
    endpoint, _ = serve(lambda request: answer(), budget=Budget(max_requests=3))
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(endpoint.ask, "?") for _ in range(8)]
        failed = [type(f.exception()) for f in asked if f.exception()]
    assert endpoint.budget.num_requests == 3 and failed == [BudgetReached] * 5


def test_no_more_dollars_than_the_budget_has() -> None:
    """Each answer costs 0.0002, and may cost 0.00054 with 50 tokens: what is set aside keeps the sum below."""
    endpoint, _ = serve(lambda request: answer(), budget=Budget(max_dollars=0.001))
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(endpoint.ask, "?", max_tokens=50) for _ in range(8)]
        failed = [f.exception() for f in asked if f.exception()]
    assert endpoint.budget.num_requests == 3 and len(failed) == 5
    assert "max_dollars is 0.001" in str(failed[0])


def test_no_more_requests_at_a_time_than_allowed() -> None:
    running, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(2)

    def handle(_: httpx2.Request) -> httpx2.Response:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(5)
        with lock:
            running -= 1
        return answer()

    endpoint, _ = serve(handle, EndpointConfig(url="http://server/v1", model="m", max_concurrent=2))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(endpoint.ask, ["?"] * 6))
    assert most == 2


def test_requests_leave_no_faster_than_the_rate() -> None:
    config = EndpointConfig(url="http://server/v1", model="m", requests_per_minute=60)
    endpoint, pauses = serve(lambda request: answer(), config)
    for _ in range(3):
        endpoint.ask("?")
    assert len(pauses) == 2 and 0.9 < pauses[0] <= 1.0 and 1.8 < pauses[1] <= 2.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("url", "server/v1"),
        ("max_concurrent", 0),
        ("timeout_seconds", 0.0),
        ("jpeg_quality", 101),
        ("thinking_tokens", -1),
    ],
)
def test_a_config_is_checked(field: str, value: object) -> None:
    with pytest.raises((ConfigError, ValueError), match=field):
        EndpointConfig(**{"url": "http://server/v1", "model": "m", field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "choices",
    [[{"finish_reason": "content_filter", "index": 0}], [{"finish_reason": "stop", "message": {}}]],
    ids=range(2),
)
def test_what_a_filter_withholds_is_an_empty_answer(choices: list) -> None:
    endpoint, pauses = serve(in_turn(httpx2.Response(200, json={"choices": choices})))
    reply = endpoint.ask("?")
    assert reply.text == "" and reply.finish_reason in ("content_filter", "stop") and not pauses


def test_no_choice_at_any_try_is_of_this_request_alone() -> None:
    endpoint, _ = serve(in_turn(*[httpx2.Response(200, json={"choices": []})] * 4))
    with pytest.raises(RequestRefused, match="no answer after 4 tries: an answer without a choice"):
        endpoint.ask("?")


def test_a_page_in_place_of_an_answer_is_asked_again() -> None:
    page = httpx2.Response(200, text="<html><body>Sign in</body></html>")
    endpoint, pauses = serve(in_turn(page, httpx2.Response(502, text="<html>bad gateway</html>"), answer()))
    assert endpoint.ask("?").text == "yes" and len(pauses) == 2
    endpoint, _ = serve(in_turn(*[page] * 4))
    with pytest.raises(EndpointError, match=r"no answer after 4 tries: no chat completion: .*Sign in"):
        endpoint.ask("?")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>A or B? </think>\n\nB", "B"),
        ("it was shown before: A\n</think>B", "B"),
        ("<think>A or B? Perhaps", ""),
        ("a <think> tag", "a <think> tag"),
    ],
    ids=range(4),
)
def test_thoughts_are_no_answer(text: str, said: str) -> None:
    endpoint, _ = serve(in_turn(answer(text)))
    reply = endpoint.ask("?")
    assert reply.text == said and reply.raw["choices"][0]["message"]["content"] == text
