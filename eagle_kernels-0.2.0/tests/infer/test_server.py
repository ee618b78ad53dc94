"""Over real HTTP, with OpenAI's client: answers, streams, media, limits, clients that vanish."""

from __future__ import annotations

import base64
import contextlib
import copy
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import openai
import pytest
import torch
from PIL import Image

from eagle_model.data.processor import Processor
from eagle_model.infer.engine import Engine
from eagle_model.infer.media import MediaLimits
from eagle_model.infer.sampling import Sampling
from eagle_model.infer.server import ServerConfig
from eagle_model.model import lora
from tests.infer.serving import Running, running, small_model, small_processor
from tests.video.make import draw, write_video

HELLO = [{"role": "user", "content": "Hello"}]
ROOT = Path(__file__).parents[2]
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_video(folder / "film.mp4", [draw(i) for i in range(50)], fps=25)
    Image.fromarray(np.arange(3 * 60 * 90, dtype=np.uint8).reshape(60, 90, 3)).save(folder / "page.png")
    return folder


@pytest.fixture(scope="module")
def served(films, tmp_path_factory):
    config = ServerConfig(
        name="small",
        media=MediaLimits(allowed=(films,), max_file_bytes=1 << 20),
        max_body_bytes=1 << 20,
        max_answers=24,
    )
    with running(tmp_path_factory.mktemp("store") / "files", config) as server:
        yield server


@pytest.fixture(scope="module")
def client(served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def letters(processor: Processor) -> dict[str, int]:
    """A bias that makes an answer of letters alone, each a token with a text, and keeps it from ending by itself."""
    ids = range(processor.tokenizer.get_vocab_size())
    return {str(i): 60 for i in ids if re.fullmatch("[a-z]", processor.tokenizer.decode([i]))}


@pytest.fixture(scope="module")
def spell(served) -> dict[str, int]:
    return letters(served.engine.processor)


def asked(kind: str, url: str, question: str = "What?") -> list[dict]:
    parts = [{"type": kind, kind: {"url": url}}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


def data_url(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


# -- answers


def test_an_answer_is_the_engines(served, client):
    got = client.chat.completions.create(model="small", messages=HELLO, max_tokens=8)
    want = served.engine.submit(HELLO, Sampling(max_new_tokens=8)).result()
    choice = got.choices[0]
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (want.text, "assistant", "length")
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (want.usage.prompt_tokens, 8)
    assert got.usage.total_tokens == want.usage.prompt_tokens + 8
    assert [model.id for model in client.models.list()] == ["small"]
    assert client.models.retrieve("small").id == "small"


def test_a_stream_is_the_same_answer_in_pieces(served, client, spell):
    wanted = {"model": "small", "messages": HELLO, "max_tokens": 20, "logit_bias": spell}
    whole = client.chat.completions.create(**wanted)
    stream = client.chat.completions.create(**wanted, stream=True, stream_options={"include_usage": True})
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert len(chunks) == 21 and chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert last.choices == [] and last.usage.completion_tokens == 20
    text = httpx2.post(
        f"{served.url}/v1/chat/completions", json={"messages": HELLO, "stream": True, "max_tokens": 2}
    ).text
    assert text.endswith("data: [DONE]\n\n") and '"usage"' not in text


def test_what_may_be_asked_of_an_answer(served, client, spell):
    def ask(**more):
        wanted = {"model": "small", "messages": HELLO, "max_tokens": 6, "logit_bias": spell}
        return client.chat.completions.create(**(wanted | more))

    def direct(**more):
        bias = tuple((int(token_id), float(value)) for token_id, value in spell.items())
        return served.engine.submit(HELLO, Sampling(max_new_tokens=6, logit_bias=bias, **more)).result()

    plain = ask().choices[0].message.content
    first = direct().token_ids[0]
    assert len(plain) == 6 and plain[0] not in ask(logit_bias=spell | {str(first): -100}).choices[0].message.content
    penalised = ask(presence_penalty=2.0, frequency_penalty=2.0, extra_body={"repetition_penalty": 3.0})
    want = direct(presence_penalty=2.0, frequency_penalty=2.0, repetition_penalty=3.0)
    assert penalised.choices[0].message.content == want.text != plain
    drawn = [ask(temperature=1.5, seed=7, n=2).choices for _ in range(2)]
    assert [choice.index for choice in drawn[0]] == [0, 1]
    assert [choice.message.content for choice in drawn[0]] == [choice.message.content for choice in drawn[1]]
    assert drawn[0][0].message.content != drawn[0][1].message.content  # each has a seed of its own
    assert drawn[0][1].message.content == direct(temperature=1.5, seed=8).text
    text = drawn[0][0].message.content
    stopped = ask(temperature=1.5, seed=7, stop=text[2:4]).choices[0]
    assert stopped.finish_reason == "stop" and stopped.message.content == text.partition(text[2:4])[0]


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(served, client, stream):
    got = client.chat.completions.create(
        model="small", messages=HELLO, max_tokens=4, logprobs=True, top_logprobs=3, stream=stream
    )
    entries = (
        [entry for chunk in got for entry in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])]
        if stream
        else got.choices[0].logprobs.content
    )
    want = served.engine.submit(HELLO, Sampling(max_new_tokens=4, logprobs=3)).result().logprobs
    assert [entry.logprob for entry in entries] == pytest.approx([one.logprob for one in want], abs=1e-4)
    for entry in entries:
        assert len(entry.top_logprobs) == 3 and entry.top_logprobs[0].logprob == entry.logprob  # greedy
        assert bytes(entry.bytes).decode(errors="replace") == entry.token  # alone, a part of a character is U+FFFD


def test_several_answers_as_one_stream(served, client, spell):
    stream = client.chat.completions.create(
        model="small",
        messages=HELLO,
        max_tokens=5,
        n=3,
        logit_bias=spell,
        stream=True,
        stream_options={"include_usage": True},
    )
    texts, reasons, usage = ["", "", ""], [None] * 3, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert len(set(texts)) == 1 and texts[0] and reasons == ["length"] * 3 and usage.completion_tokens == 15


# -- media


def test_a_film_by_url_upload_and_folder_is_one_film(served, client, films):
    film = films / "film.mp4"
    kept = client.files.create(file=film, purpose="user_data")
    ways = [
        asked("video_url", data_url(film, "video/mp4")),
        asked("video_url", film.as_uri()),
        asked("video_url", kept.id),
        [
            {
                "role": "user",
                "content": [{"type": "file", "file": {"file_id": kept.id}}, {"type": "text", "text": "What?"}],
            }
        ],
    ]
    want = served.engine.submit(
        [{"role": "user", "content": [{"type": "video", "video": str(film)}, {"type": "text", "text": "What?"}]}],
        Sampling(max_new_tokens=5),
    ).result()
    for messages in ways:
        got = client.chat.completions.create(model="small", messages=messages, max_tokens=5)
        assert got.choices[0].message.content == want.text
    assert got.eagle["media"][0]["kind"] == "video" and got.eagle["num_tiles"] == 4  # 2 s at 2 fps
    again = client.chat.completions.create(model="small", messages=asked("video_url", kept.id, "Why?"), max_tokens=5)
    assert again.usage.prompt_tokens_details.cached_tokens > 0  # the film's
    assert client.files.retrieve(kept.id).filename == "film.mp4"
    assert client.files.content(kept.id).content == film.read_bytes()
    assert kept.id in [file.id for file in client.files.list()]
    assert client.files.delete(kept.id).deleted
    with pytest.raises(openai.NotFoundError, match="there is no file"):
        client.chat.completions.create(model="small", messages=asked("video_url", kept.id))


def test_frames_fps_and_tiles_are_a_requests_own(client, films):
    def tiles(kind: str, file: str, **more) -> int:
        messages = asked(kind, (films / file).as_uri())
        got = client.chat.completions.create(model="small", messages=messages, max_tokens=1, extra_body=more)
        return got.eagle["num_tiles"]

    assert tiles("video_url", "film.mp4", frames=2) == 2
    assert tiles("video_url", "film.mp4", fps=4) == 8
    assert tiles("image_url", "page.png", tiles=1) == 1
    assert tiles("image_url", "page.png") > 1


def test_the_tiles_of_an_answer_can_be_looked_at(served, client, films):
    messages = asked("image_url", (films / "page.png").as_uri())
    got = client.chat.completions.create(model="small", messages=messages, max_tokens=1)
    png = httpx2.get(f"{served.url}/v1/seen/{got.id}/0")
    assert Image.open(io.BytesIO(png.content)).size == (28, 28)
    for path in (f"{got.id}/{got.eagle['num_tiles']}", f"{got.id}/-1", "chatcmpl-0/0"):
        assert httpx2.get(f"{served.url}/v1/seen/{path}").status_code == 404


# -- refusals


@pytest.mark.parametrize(
    ("status", "said", "change"),
    [
        (400, "messages is missing or empty", {"messages": None}),
        (400, "does not exist|cannot be read|is no data URL", {"messages": asked("image_url", "data:x")}),
        (400, "context", {"max_tokens": 100_000}),
        (400, "shorten the text", {"messages": [{"role": "user", "content": "long " * 1000}]}),
        (400, "cannot be|not an image|is not", {"messages": asked("image_url", "data:,nothing")}),
        (
            403,
            "no regular file of a folder that this server allows",
            {"messages": asked("image_url", "file:///etc/passwd")},
        ),
        (400, "fetches nothing by http", {"messages": asked("image_url", "http://127.0.0.1/x.png")}),
        (400, "logit_bias names token 99999", {"logit_bias": {"99999": 1}}),
        (404, "there is no model 'gpt' here; there is small", {"model": "gpt"}),
        (400, "the field 'wish' is not known", {"wish": 1}),
        (400, r"the field '\\ud800' is not known", {"\ud800": 1}),
        (400, "half of a surrogate pair", {"messages": [{"role": "user", "content": "\ud800"}]}),
        (400, "tiles is 1000000000; the context", {"tiles": 10**9}),
        (429, "24 is the most", {"n": 16, "twice": True}),
    ],
)
def test_what_cannot_be_done_is_a_sentence(served, status, said, change):
    body = {"messages": HELLO, "max_tokens": 400, "logit_bias": letters(served.engine.processor)} | change
    if body.pop("twice", False):
        with httpx2.stream("POST", f"{served.url}/v1/chat/completions", json=body | {"stream": True}):
            got = httpx2.post(f"{served.url}/v1/chat/completions", json=body)
            assert got.headers["Retry-After"] == "1"
    else:
        headers = {"Content-Type": "application/json"}  # httpx2's own JSON has no half of a surrogate pair
        got = httpx2.post(f"{served.url}/v1/chat/completions", content=json.dumps(body), headers=headers)
    error = got.json()["error"]
    assert (got.status_code, error["code"]) == (status, status)
    assert re.search(said, error["message"]), error
    served.wait_until_idle()


@pytest.mark.parametrize("stream", [False, True])
def test_a_picture_that_breaks_off_is_a_sentence_without_our_folders(served, films, stream):
    """Its head is whole, so that only its pixels tell: after a stream has begun."""
    content = (films / "page.png").read_bytes()
    url = f"data:image/png;base64,{base64.b64encode(content[: len(content) // 2]).decode()}"
    body = {"messages": asked("image_url", url), "max_tokens": 2, "stream": stream}
    got = httpx2.post(f"{served.url}/v1/chat/completions", json=body)
    error = re.search(r'\{"error":.*\}', got.text)
    assert got.status_code == (200 if stream else 400) and error is not None, got.text
    assert json.loads(error[0])["error"]["code"] == 400
    assert "cannot be" in got.text and str(served.service.store.folder) not in got.text
    served.wait_until_idle()


def test_bodies_that_are_none(served):
    url = f"{served.url}/v1/chat/completions"
    assert httpx2.post(url, content=b"{}").status_code == 415
    for body in (b"{", b"[" * 100_000, b"\xff", b"3"):
        got = httpx2.post(url, content=body, headers={"Content-Type": "application/json"})
        assert got.status_code == 400 and "error" in got.json(), body[:5]

    def endless():
        for _ in range(40):
            yield b" " * 65_536

    got = httpx2.post(url, content=endless(), headers={"Content-Type": "application/json"})  # without Content-Length
    assert got.status_code == 413 and "larger than 1048576 bytes" in got.json()["error"]["message"]
    assert httpx2.post(f"{served.url}/v1/files", files={"file": b"x" * (3 << 20)}).status_code == 413
    assert httpx2.post(f"{served.url}/v1/files", data={"purpose": "x"}).status_code == 400
    assert httpx2.get(f"{served.url}/nowhere").json()["error"]["code"] == 404
    error = httpx2.get(f"{served.url}/v1/seen/a/b").json()["error"]
    assert error["code"] == 400 and "number of the URL: Input should be a valid integer" in error["message"]


def test_an_upload_that_breaks_off_leaves_nothing(served, monkeypatch):
    faults: list[str] = []

    def num_refused() -> float:
        text = httpx2.get(f"{served.url}/metrics").text
        return sum(map(float, re.findall(r'eagle_responses_total{.*status="400"} (\S+)', text)))

    refused = num_refused()
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "error", lambda text, *_, **__: faults.append(text))
    kept, head = served.service.store, HEAD.replace(b"chat/completions", b"files")
    head = head.replace(b"application/json", b"multipart/form-data; boundary=x") + b"Content-Length: 90000\r\n\r\n"
    before = kept.uploads()
    with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2]))) as sock:
        sock.sendall(
            head + b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n' + b"film" * 9000
        )
    with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2]))) as sock:
        sock.sendall(HEAD + b"Content-Length: 90000\r\n\r\n{")
    end = time.monotonic() + 20
    while not faults and num_refused() < refused + 2:
        assert time.monotonic() < end
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    client.files.delete(client.files.create(file=("a.mp4", b"film"), purpose="user_data").id)  # later than that
    assert kept.uploads() == before and not list(kept.folder.glob(".*")) and not faults


def test_a_temperature_next_to_nothing_harms_nobody(served, client):
    plain = client.chat.completions.create(model="small", messages=HELLO, max_tokens=4)
    cold = client.chat.completions.create(model="small", messages=HELLO, max_tokens=4, temperature=1e-300)
    assert cold.choices[0].message.content == plain.choices[0].message.content


def test_bytes_of_log_probabilities_make_the_text(served, client):
    tokenizer = served.engine.processor.tokenizer
    parts = {str(i): 60 for i in range(tokenizer.get_vocab_size()) if tokenizer.decode([i]) == "\ufffd"}
    wishes = {"max_tokens": 30, "temperature": 2, "seed": 1, "logit_bias": parts, "logprobs": True, "top_logprobs": 2}
    got = client.chat.completions.create(model="small", messages=HELLO, **wishes).choices[0]
    found = [entry.bytes for entry in got.logprobs.content]
    assert b"".join(map(bytes, found)).decode(errors="replace") == got.message.content
    assert all(len(part) == 1 for part in found) and max(found) > [0xC0]


def test_keys_origins_and_time(tmp_path):
    processor = small_processor()
    config = ServerConfig(api_keys=("one", "two"), cors_origins=("https://site.example",), request_seconds=0.05)
    with running(tmp_path / "files", config, Engine(small_model(processor), processor)) as server:
        for path in ("/v1/models", "/metrics", "/v1/files", "/v1/seen/a/0"):
            assert httpx2.get(server.url + path).status_code == 401
            assert httpx2.get(server.url + path, headers={"Authorization": "Bearer on"}).status_code == 401
        for path in ("/health", "/ready", "/"):
            assert httpx2.get(server.url + path).status_code == 200
        key = {"Authorization": "Bearer two"}
        assert httpx2.get(f"{server.url}/v1/models", headers=key).status_code == 200
        for origin, allowed in (("https://site.example", "https://site.example"), ("https://other.example", None)):
            got = httpx2.get(f"{server.url}/health", headers={"Origin": origin})
            assert got.headers.get("Access-Control-Allow-Origin") == allowed
        body = {"messages": HELLO, "max_tokens": 400, "logit_bias": letters(processor)}
        late = httpx2.post(f"{server.url}/v1/chat/completions", json=body, headers=key)
        assert late.status_code == 408 and "took longer than 0.05 s" in late.json()["error"]["message"]
        server.wait_until_idle()


def test_adapters_are_models_by_name(tmp_path):
    processor = small_processor()
    model, engine = small_model(processor), Engine(small_model(processor), processor)
    for seed, name in enumerate(("one", "two")):
        adapted = copy.deepcopy(model)
        torch.manual_seed(seed)
        lora.add_lora(adapted, lora.LoraConfig(rank=4, alpha=64))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=0.1)
        lora.save_adapter(adapted, tmp_path / name)
        engine.add_adapter(name, tmp_path / name)
    with running(tmp_path / "files", ServerConfig(name="small", adapters=("one", "two")), engine) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == ["small", "one", "two"]
        bias = letters(processor)
        asked = ["small", "one", "two", "one", "small"]
        with ThreadPoolExecutor(5) as pool:
            answers = pool.map(
                lambda name: client.chat.completions.create(model=name, messages=HELLO, max_tokens=8, logit_bias=bias),
                asked,
            )
            said = {(answer.model, answer.choices[0].message.content) for answer in answers}
        assert len(said) == 3 == len({text for _, text in said}) and {name for name, _ in said} == set(asked)
        wishes = Sampling(max_new_tokens=8, logit_bias=tuple((int(i), float(value)) for i, value in bias.items()))
        assert ("two", engine.submit(HELLO, wishes, adapter="two").result().text) in said
    with pytest.raises(ValueError, match="two models are named 'small'"):
        ServerConfig(name="small", adapters=("one", "small"))


# -- what goes on


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_whose_engine_has_ended_says_so(tmp_path, monkeypatch):
    with running(tmp_path / "files", ServerConfig(name="small")) as server:
        assert httpx2.get(f"{server.url}/health").status_code == 200
        monkeypatch.setattr(server.engine, "_forward", lambda *_: 1 / 0)
        url, body = f"{server.url}/v1/chat/completions", {"messages": HELLO, "max_tokens": 2}
        assert [httpx2.post(url, json=body).status_code for _ in range(2)] == [500, 503]
        assert httpx2.get(f"{server.url}/ready").status_code == 503
        assert httpx2.get(f"{server.url}/health").status_code == 503


def test_metrics_have_the_histograms(served, client):
    client.chat.completions.create(model="small", messages=HELLO, max_tokens=5)
    text = httpx2.get(f"{served.url}/metrics").text
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    assert values["eagle_time_to_first_token_seconds_count"] >= 1
    assert values["eagle_time_per_token_seconds_count"] >= 4
    assert values['eagle_responses_total{path="/v1/chat/completions",status="200"}'] >= 1
    assert values['eagle_answers_total{finish_reason="length"}'] >= 1
    assert values["eagle_engine_blocks_free"] > 0 and "eagle_store_bytes" in values


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_leaves_nothing(served, monkeypatch, stream):
    """In the middle of a stream, or while it waits for a whole answer. Slow steps: no pause of the machine hides it."""
    forward = served.engine._forward
    monkeypatch.setattr(served.engine, "_forward", lambda *given: time.sleep(0.01) or forward(*given))
    body = {
        "messages": HELLO,
        "max_tokens": 440,
        "n": 4,
        "stream": stream,
        "logit_bias": letters(served.engine.processor),
    }
    before = served.engine.stats().tokens_done
    text = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2]))) as sock:
        sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(text) + text)
        while served.engine.stats().tokens_done < before + 8:
            time.sleep(0.005)
    served.wait_until_idle()
    assert served.engine.stats().tokens_done - before < 4 * 440  # it was not computed to its end


def load(served: Running, num_requests: int) -> None:
    """Clients that come at random, some of which go away at random: none is lost, and nothing is left of any."""
    import random

    port = int(served.url.rpartition(":")[2])
    draws = random.Random(0)
    plans = [(draws.random() < 0.3, draws.randrange(1, 12), draws.random() < 0.5) for _ in range(num_requests)]

    def one(plan: tuple[bool, int, bool]) -> str:
        vanishes, num_tokens, stream = plan
        body = {
            "messages": HELLO,
            "max_tokens": num_tokens,
            "stream": stream,
            "logit_bias": letters(served.engine.processor),
        }
        text = json.dumps(body).encode()
        with socket.create_connection(("127.0.0.1", port), timeout=120) as sock:
            sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(text) + text)
            if vanishes:
                time.sleep(num_tokens * 0.002)
                return "gone"
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        if b" 429 " in answer.partition(b"\r\n")[0]:
            time.sleep(0.02)
            return one(plan)
        assert b" 200 " in answer.partition(b"\r\n")[0], answer
        assert (b"[DONE]" in answer) if stream else (b'"completion_tokens":%d,' % num_tokens in answer), answer
        return "answered"

    with ThreadPoolExecutor(24) as pool:
        ends = list(pool.map(one, plans))
    assert ends.count("answered") == sum(not vanishes for vanishes, _, _ in plans)
    served.wait_until_idle()


def test_clients_that_come_and_vanish(served):
    load(served, 60)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_a_thousand_clients_that_come_and_vanish_leave_memory_as_it_was(served):
    load(served, 300)  # what is made once
    before = resident_bytes()
    load(served, 1000)
    assert resident_bytes() - before < 16 << 20
    assert not list(served.service.store.folder.glob(".*"))


@pytest.mark.parametrize("twice", [False, True])
def test_sigterm_lets_answers_end_and_a_second_one_does_not(tmp_path, twice):
    processor = small_processor()
    small_model(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "eagle_model.cli", "serve", str(tmp_path / "model"), "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while True:
            try:
                if httpx2.get(f"{url}/ready").status_code == 200:
                    break
            except httpx2.TransportError:
                assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        bias = letters(processor)
        body = {"messages": HELLO, "max_tokens": 400, "stream": True, "logit_bias": bias}
        with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            if twice:
                next(lines)
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(httpx2.TransportError):
                    list(lines)
                assert process.wait(60) == 0
                return
            rest = list(lines)
        assert rest[-2] == "data: [DONE]" and len(rest) > 400
        assert process.wait(60) == 0
        assert f"{url}/" in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
