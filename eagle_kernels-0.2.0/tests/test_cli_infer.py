"""`eagle chat`, `serve` and `export`: what goes to stdout and stderr, a talk with more files, and Ctrl-C."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eagle_model import cli, cli_infer
from eagle_model.infer import server
from eagle_model.infer.engine import Engine
from eagle_model.infer.request import Request
from eagle_model.infer.sampling import Sampling
from tests.infer.serving import small_model, small_processor
from tests.test_cli import run
from tests.video.make import draw, write_video


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    processor = small_processor()
    small_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def film(tmp_path: Path) -> Path:
    write_video(tmp_path / "a film.mp4", [draw(i) for i in range(50)], fps=25)
    return tmp_path / "a film.mp4"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(np.full((60, 90, 3), 200, np.uint8)).save(tmp_path / "page.png")
    return tmp_path / "page.png"


def says(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """What a person types, and then nothing more."""
    typed = iter(lines)

    def read(_prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)


def test_one_question_gives_the_answer_alone_and_says_the_plan_and_the_speed_beside_it(
    monkeypatch, capsys, model, film, picture
):
    assert run(monkeypatch, "chat", model, film, picture, "--ask", "What?", "--max-new-tokens", 6) == 0
    printed = capsys.readouterr()
    parts = [{"type": "video", "video": str(film)}, {"type": "image", "image": str(picture)}]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}]
    engine = Engine.from_folder(model)
    assert printed.out == engine.submit(messages, Sampling(max_new_tokens=6)).result().text + "\n"
    assert "a film.mp4: 4 frames, at 0.00, 0.64, 1.32, 1.96 s" in printed.err
    assert "page.png: 3 x 2 tiles and a thumbnail" in printed.err
    assert "tokens, 11 tiles among them." in printed.err
    assert "6 tokens; first after " in printed.err and " tokens a second" in printed.err


def test_limits_and_draws_are_passed_on(monkeypatch, capsys, model, film):
    asked = ("chat", model, film, "--ask", "What?", "--max-new-tokens", 6, "--temperature", 2)
    answers = []
    for seed in (1, 1, 2):
        assert run(monkeypatch, *asked, "--seed", seed, "--frames", 3) == 0
        printed = capsys.readouterr()
        assert "3 frames" in printed.err
        answers.append(printed.out)
    assert answers[0] == answers[1] != answers[2]
    assert run(monkeypatch, *asked, "--top-p", 2) == cli.USAGE_ERROR
    assert "top_p is 2.0; needs a share above 0" in capsys.readouterr().err
    assert run(monkeypatch, "chat", model, "--ask", "?", "--max-new-tokens", 9999) == cli.USAGE_ERROR
    assert "max_new_tokens is 9999; the model's context is 512" in capsys.readouterr().err


def test_a_talk_remembers_adds_files_and_forgets(monkeypatch, capsys, model, film, picture):
    asked: list[list[dict]] = []
    submit = Engine.submit

    def spy(engine, messages, *given, **more):
        asked.append(list(messages))
        return submit(engine, messages, *given, **more)

    monkeypatch.setattr(Engine, "submit", spy)
    says(monkeypatch, "What?", f"/add '{film}'", "/wish", "/add nowhere.png", "Why?", "/new", "Who?", "", "Never?")
    assert run(monkeypatch, "chat", model, picture, "--max-new-tokens", 4) == 0
    printed = capsys.readouterr()
    assert [[message["role"] for message in messages] for messages in asked] == [
        ["user"],
        ["user", "assistant", "user"],
        ["user"],
    ]
    kinds = [[part["type"] for part in messages[-1]["content"]] for messages in asked]
    assert kinds == [["image", "text"], ["video", "text"], ["text"]]
    assert asked[1][1]["content"] == printed.out.split("\n")[0]
    assert "eagle: /wish is not understood. /add FILE ... shows more" in printed.err
    assert "eagle: nowhere.png does not exist." in printed.err
    assert "prompt tokens known already" in printed.err


def test_a_broken_file_spoils_one_question_alone(monkeypatch, capsys, model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    says(monkeypatch, f"/add '{tmp_path / 'broken.png'}'", "What?", "Why?")
    assert run(monkeypatch, "chat", model, "--max-new-tokens", 4) == 0
    printed = capsys.readouterr()
    assert "cannot be" in printed.err and "What was to be shown with it is dropped" in printed.err
    assert printed.err.count("4 tokens;") == 1


def test_control_c_stops_an_answer_and_not_the_talk(monkeypatch, capsys, model):
    events, stopped = Request.events, []

    def interrupted(request: Request):
        for event in events(request):
            if not stopped:  # at once: the engine goes on beside this
                stopped.append(request)
                signal.raise_signal(signal.SIGINT)
            yield event

    monkeypatch.setattr(Request, "events", interrupted)
    says(monkeypatch, "What?", "Why?")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        assert run(monkeypatch, "chat", model, "--max-new-tokens", 400) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    printed = capsys.readouterr()
    assert "Stopped." in printed.err and printed.err.count("400 tokens;") <= 1
    assert stopped[0].result().finish_reason == "cancelled"


def test_serve_reads_its_options(monkeypatch, capsys, model, tmp_path):
    served = []
    monkeypatch.setattr(server, "serve", lambda app, **how: served.append((app.state.service, how)))
    monkeypatch.setenv("EAGLE_API_KEY", "secret")
    options = ("--port", 8123, "--name", "mine", "--media-folder", tmp_path, "--media-host", "example.org")
    limits = ("--max-answers", 3, "--max-file-mb", 1, "--cache-tokens", 1024, "--drain-seconds", 7)
    assert run(monkeypatch, "serve", model, *options, *limits, "--cors", "https://site.example") == 0
    ((service, how),) = served
    config = service.config
    assert how == {"host": "127.0.0.1", "port": 8123, "drain_seconds": 7}
    assert (config.name, config.api_keys, config.max_answers) == ("mine", ("secret",), 3)
    assert (config.media.allowed, config.media.hosts) == ((tmp_path,), ("example.org",))
    assert (config.media.max_file_bytes, config.cors_origins) == (1 << 20, ("https://site.example",))
    assert service.engine.context_tokens == 512 and not service.store.folder.exists()  # its files are gone
    assert run(monkeypatch, "serve", model, "--media-folder", tmp_path / "no") == cli.USAGE_ERROR
    assert "is no folder; needs one whose files clients may name" in capsys.readouterr().err
    assert run(monkeypatch, "serve", model, "--adapter", "style") == cli.USAGE_ERROR
    assert "--adapter is style; needs NAME=FOLDER" in capsys.readouterr().err


def test_infer_answers_a_file_and_goes_on_where_it_stopped(monkeypatch, capsys, model, film, tmp_path):
    content = [{"type": "video", "video": film.name}, {"type": "text", "text": "What?"}]
    rows = [
        {"id": "film", "messages": [{"role": "user", "content": content}]},
        {"id": "gone", "messages": [{"role": "user", "content": [{"type": "image", "image": "no.png"}]}]},
        {"id": "text", "conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "I."}]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ("infer", model, tmp_path / "rows.jsonl", "--out", tmp_path / "out.jsonl", "--max-new-tokens", 4)
    assert run(monkeypatch, *asked) == cli_infer.SOME_FAILED
    printed = capsys.readouterr()
    assert "2 answered, 1 failed" in printed.err and f"Written: {tmp_path / 'out.jsonl'}" in printed.out
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    by_id = {line["id"]: line for line in lines}
    assert set(by_id) == {"film", "gone", "text"} and "no.png" in by_id["gone"]["error"]
    want = Engine.from_folder(model).submit([{"role": "user", "content": "Who?"}], Sampling(max_new_tokens=4)).result()
    assert by_id["text"]["text"] == want.text
    (tmp_path / "out.jsonl").write_text(json.dumps(by_id["film"]) + "\n" + json.dumps(by_id["gone"]) + "\n")
    assert run(monkeypatch, *asked) == 0  # the rest alone
    assert "1 answered, 0 failed" in capsys.readouterr().err
    for wrong, said in (("no.jsonl", "does not exist"), ("out.jsonl", "the file of the questions")):
        assert run(monkeypatch, *asked[:2], tmp_path / wrong, *asked[3:]) == cli.USAGE_ERROR
        assert said in capsys.readouterr().err
    assert run(monkeypatch, *asked, "--quantize", "int3") == cli.USAGE_ERROR
    assert "--quantize is int3; needs int8 or int4" in capsys.readouterr().err


def test_export_writes_what_is_asked_for(monkeypatch, capsys, model, tmp_path):
    written = []
    monkeypatch.setattr("eagle_model.infer.export.export_onnx", lambda eagle, path: written.append((eagle.cfg, path)))
    assert run(monkeypatch, "export", model, "--onnx", tmp_path / "v.onnx") == 0
    assert f"Written: {tmp_path / 'v.onnx'}" in capsys.readouterr().out and written[0][1] == tmp_path / "v.onnx"
    assert run(monkeypatch, "export", model) == cli.USAGE_ERROR
    assert "--onnx FILE or --package FILE is missing" in capsys.readouterr().err


def test_files_that_are_none_are_refused(tmp_path):
    for path, said in ((Path("http:/x/a"), "is a URL"), (tmp_path, "is a folder"), (tmp_path / "no", "does not exist")):
        with pytest.raises(ValueError, match=said):
            cli_infer.media_parts([path])
