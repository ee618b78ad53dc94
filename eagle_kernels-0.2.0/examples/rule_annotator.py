"""An annotator that follows rules: an OpenAI-compatible server to try `eagle annotate` without a model or a network.

    python examples/rule_annotator.py --port 8001 --log requests.jsonl --faults

It knows the requests alone: the pictures it is sent, their times and the prompt. Of a picture it sees which of its four
corners is brightest, which is what all of its questions are about. With --faults it is as bad as servers are: some
requests get 429 or 500, some answers come late, cut short or without a field; and some questions are bad, for `filter`
to find.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

WORDS = ("bottom left", "bottom right", "top left", "top right")  # by the alphabet: who sees nothing takes the first
SLOW_SECONDS = 0.05


def brightest(data_url: str) -> str:
    """The corner of a picture with the largest mean of its gray values."""
    image = Image.open(io.BytesIO(base64.b64decode(data_url.split(",")[1]))).convert("L")
    corners = image.resize((2, 2), Image.Resampling.BOX).tobytes()  # top left, top right, bottom left, bottom right
    return max(zip(corners, ("top left", "top right", "bottom left", "bottom right")))[1]


def question(text: str, right: str, *, wrong: list[str] | None = None) -> dict[str, Any]:
    options = wrong or [w for w in WORDS if w != right]
    return {"question": text, "answer": f"It is at the {right}.", "short": right, "wrong": options[:3]}


def clip_question(kind: str, first: str) -> dict[str, Any] | None:
    """By the type: most ask where it is brightest at the start; some are bad on purpose."""
    if kind.startswith("domain") or kind.endswith("identity"):
        return None
    if kind.endswith("count"):  # a wrong answer, on which it does not insist
        return question(f"Where is it brightest at the start ({kind})?", next(w for w in WORDS[1:] if w != first))
    if kind.endswith("location"):  # it gives its answer away
        return question(f"The light is at the {first}. Where is it ({kind})?", first)
    if kind.endswith("recognition"):  # two options are one
        return question(f"Where is it brightest at the start ({kind})?", first, wrong=[first.upper(), *WORDS[1:3]])
    if kind.endswith("speed"):  # it does not know
        return question(f"How fast is it, and where is it brightest ({kind})?", first)
    if kind.endswith("comparison"):  # it can be answered without looking
        return question(f"Is there light ({kind})?", "anywhere", wrong=["nowhere", *WORDS[2:]])
    return question(f"Where is it brightest at the start of the clip ({kind})?", first)


def answer(body: dict[str, Any]) -> str:
    """What the rules say to a request."""
    parts = body["messages"][-1]["content"]
    parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
    texts = [p["text"] for p in parts if p["type"] == "text"]
    seen = [brightest(p["image_url"]["url"]) for p in parts if p["type"] == "image_url"]
    prompt = texts[-1]
    if "The chapter's title is:" in prompt:
        title = re.findall(r"title is: (.*)", prompt)[0]
        brief = f"The chapter {title} begins at the {seen[0]} and ends at the {seen[-1]}."
        return json.dumps({"brief": brief, "detailed": f"{brief} It is told by {len(seen)} pictures."})
    if "Below are the chapters" in prompt:
        chapters = re.findall(r"s: (.*)\nThe chapter .* begins at the (.*) and ends at the (.*?)\.", prompt)
        first, last = chapters[0], chapters[-1]
        asked = [
            question("Where is it brightest at the start of the whole video?", first[1]),
            question("Where is it brightest at the end of the whole video?", last[2]),
            question("Where is it brightest at the end of the whole video?", last[2]),  # twice the same
        ]
        return json.dumps({"questions": asked})
    if "by which somebody can find this clip" in prompt:
        brief = (
            "A scene from a film in which something moves slowly while the camera stays where it is, seen in daylight"
        )
        brief = "Something moves" if len(seen) < 5 else brief
        return json.dumps({"brief": brief, "detailed": f"Light comes from the {seen[0]}, then from the {seen[-1]}."})
    if "Write one question about the clip for each" in prompt:
        kinds = re.findall(r"^- (\w+)$", prompt, re.MULTILINE)
        return json.dumps({kind: clip_question(kind, seen[0]) for kind in kinds})
    if "Answer with the letter" in prompt:
        options = dict(re.findall(r"^([A-D])\. (.*)$", prompt, re.MULTILINE))
        return choose(prompt, options, seen, int(body.get("seed") or 0))
    if "a watermark or a stock" in prompt:
        return json.dumps({"watermark": False, "unsafe": False, "still": False})
    return "I do not know."


def choose(prompt: str, options: dict[str, str], seen: list[str], seed: int) -> str:
    letters = {text: letter for letter, text in options.items()}
    if not seen:
        return letters[min(letters)]
    if "How fast" in prompt:
        return f"The answer is {'ABCD'[seed % 2]}."
    wanted = seen[-1] if "at the end" in prompt else seen[0]
    return f"{letters[wanted]}. It is at the {wanted}." if wanted in letters else "None of them."


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        request = "r" + hashlib.sha256(data).hexdigest()[:16]
        number = self.server.begin()
        if self.server.faults and number % 7 == 3:
            return self._send(429, {"error": "too many requests"}, request)
        if self.server.faults and number % 11 == 5:
            return self._send(500, {"error": "out of order"}, request)
        body = json.loads(data)
        text = answer(body)
        if self.server.faults and number % 13 == 6 and "response_format" in body:
            text = text[: len(text) // 2]  # cut short
        elif self.server.faults and number % 17 == 8 and "response_format" in body:
            text = json.dumps({"unasked": 1})
        if self.server.faults and number % 5 == 2:
            time.sleep(SLOW_SECONDS)
        usage = {"prompt_tokens": len(data) // 1000, "completion_tokens": len(text) // 4}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return self._send(200, {"id": request, "choices": [choice], "usage": usage}, request)

    def _send(self, status: int, content: dict[str, Any], request: str) -> None:
        self.server.note(status, request)
        data = json.dumps(content).encode()
        try:
            self.send_response(status)
            if status != 200:
                self.send_header("Retry-After", "0")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # whoever asked is gone
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int = 0, *, log: str | None = None, faults: bool = False) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.faults, self._number, self._lock = faults, 0, threading.Lock()
        self._log = open(log, "a", buffering=1, encoding="utf-8") if log else None  # noqa: SIM115

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def begin(self) -> int:
        with self._lock:
            self._number += 1
            return self._number

    def note(self, status: int, request: str) -> None:
        with self._lock:
            if self._log:
                self._log.write(json.dumps({"status": status, "id": request}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--log", help="a file that gets a line a request")
    parser.add_argument("--faults", action="store_true")
    options = parser.parse_args()
    server = Server(options.port, log=options.log, faults=options.faults)
    print(server.url, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
