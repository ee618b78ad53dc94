"""The built-in page in a browser: a film is dropped and asked about, and its frames stand beside the answer."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from eagle_model.infer.engine import Engine
from eagle_model.infer.sampling import Sampling
from eagle_model.infer.server import ServerConfig
from tests.infer import chromium
from tests.infer.serving import running, small_model, small_processor
from tests.video.make import draw, write_video

pytestmark = pytest.mark.skipif(
    chromium.program() is None, reason="needs a browser: apt install chromium (Debian's) brings one"
)

DROP = """(async () => {
  const bytes = Uint8Array.from(atob(%s), c => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "film <b>.mp4"));
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, cancelable: true}));
})()"""
ASK = """(() => {
  document.getElementById("tokens").value = 12;
  document.getElementById("ask").value = %s;
  document.getElementById("form").requestSubmit();
})()"""
TURNS = """[...document.querySelectorAll(".turn")].map(turn => ({
  question: turn.querySelector(".question").textContent,
  answer: turn.querySelector(".answer").textContent,
  about: turn.querySelector(".about").textContent,
  errors: turn.querySelectorAll(".error").length,
  labels: [...turn.querySelectorAll("figcaption")].map(caption => caption.textContent),
  widths: [...turn.querySelectorAll("img")].map(image => image.naturalWidth)}))"""


def test_a_film_is_dropped_and_asked_about_twice(tmp_path: Path):
    film = tmp_path / "film.mp4"
    write_video(film, [draw(i) for i in range(50)], fps=25)
    processor = small_processor()
    with running(tmp_path / "files", ServerConfig(), Engine(small_model(processor), processor)) as server:
        with chromium.browser() as page:
            page.open(server.url)
            page.run(DROP % json.dumps(base64.b64encode(film.read_bytes()).decode()))
            page.wait("document.getElementById('files').textContent.includes('shown with the next question')")
            for number, question in enumerate(("What moves?", "Where? <i>")):
                page.run(ASK % json.dumps(question))
                page.wait(f"document.querySelectorAll('.turn[data-done]').length === {number + 1}", seconds=20)
                page.wait("[...document.images].every(image => image.complete)")
            first, second = page.run(TURNS)
            (tmp_path / "page.png").write_bytes(base64.b64decode(page.call("Page.captureScreenshot")["data"]))
        shown = [{"type": "video", "video": str(film)}, {"type": "text", "text": "What moves?"}]
        want = server.engine.submit([{"role": "user", "content": shown}], Sampling(max_new_tokens=12)).result()
    assert (first["question"], first["errors"], second["question"]) == ("What moves?", 0, "Where? <i>")
    assert first["answer"] == want.text
    assert len(first["labels"]) == 4 and first["labels"][0] == "0.00 s"
    assert first["widths"] == [28] * 4 and second["widths"] == [28] * 4  # of tiles; the talk shows them still
    assert "4 tiles" in first["about"] and "known already" in second["about"]
