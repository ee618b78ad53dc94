"""What the server adds to a token's time: 16 streams over HTTP, beside the same 16 answers read from the engine.

    python -m bench.bench_serve --out bench/results/serve-cpu.json      # a minute; any machine

The model is tiny, so that steps are short and what is added shows. Both ways in turn, some rounds; clients are a
process of their own. A stream's time per token is from its first token to its last, over the tokens between; the figure
is the median over streams, and the added time the median over rounds of the difference. Beside it CPU time of the
server's process per token, which other programs on the machine do not change.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from bench.machine import machine
from eagle_model.files import write_json
from eagle_model.infer.engine import Engine
from eagle_model.infer.sampling import Sampling
from eagle_model.infer.server import ServerConfig
from tests.infer.serving import Running, running, small_model, small_processor

STREAMS, TOKENS, ROUNDS = 16, 192, 7
HELLO = [{"role": "user", "content": "Hello"}]
CLIENT = """
import asyncio, json, sys, time
port, body = int(sys.argv[1]), sys.argv[2].encode()
async def one():
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST /v1/chat/completions HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n"
    head += b"Content-Type: application/json\\r\\n"
    writer.write(head + b"Content-Length: %d\\r\\n\\r\\n" % len(body) + body)
    times = []
    async for line in reader:
        if b'"content": "' in line and b'"role"' not in line:
            times.append(time.perf_counter())
    return (times[-1] - times[0]) / (len(times) - 1), len(times)
async def all_of_them():
    print(json.dumps(await asyncio.gather(*(one() for _ in range(int(sys.argv[3]))))))
asyncio.run(all_of_them())
"""


def bias(engine: Engine) -> dict[int, float]:
    """Makes every token a letter, so that each has a text, and no answer ends early."""
    tokenizer = engine.processor.tokenizer
    texts = {i: tokenizer.decode([i]) for i in range(tokenizer.get_vocab_size())}
    return {i: 60.0 for i, text in texts.items() if len(text) == 1 and text.isalpha() and text.isascii()}


def direct(engine: Engine) -> list[float]:
    """Seconds a token of each answer, read from the engine by threads."""
    sampling = Sampling(max_new_tokens=TOKENS, logit_bias=tuple(bias(engine).items()))
    found: list[float] = []

    def read() -> None:
        times = [time.perf_counter() for event in engine.submit(HELLO, sampling).events() if event.text]
        found.append((times[-1] - times[0]) / (len(times) - 1))

    threads = [threading.Thread(target=read) for _ in range(STREAMS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def served(server: Running) -> list[float]:
    """The same over HTTP."""
    wanted = {str(i): value for i, value in bias(server.engine).items()}
    body = {"messages": HELLO, "max_tokens": TOKENS, "stream": True, "logit_bias": wanted}
    command = [sys.executable, "-c", CLIENT, server.url.rpartition(":")[2], json.dumps(body), str(STREAMS)]
    pairs = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert {count for _, count in pairs} == {TOKENS}, pairs
    return [seconds for seconds, _ in pairs]


def measure(rounds: int) -> dict[str, Any]:
    processor = small_processor()
    engine = Engine(small_model(processor), processor, max_running=STREAMS)
    found: dict[str, list[float]] = {"engine": [], "server": [], "engine_cpu": [], "server_cpu": []}
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), ServerConfig(), engine) as server:
        for number in range(rounds + 1):
            for name, read in (("engine", lambda: direct(engine)), ("server", lambda: served(server))):
                began = time.process_time()
                seconds = statistics.median(read())
                cpu = (time.process_time() - began) / (STREAMS * TOKENS)
                if number:  # the first makes what is made once
                    found[name].append(seconds)
                    found[f"{name}_cpu"].append(cpu)
    added = [b - a for a, b in zip(found["engine"], found["server"], strict=True)]
    return {
        "streams": STREAMS,
        "tokens": TOKENS,
        "engine_ms_per_token": [round(1e3 * s, 3) for s in found["engine"]],
        "server_ms_per_token": [round(1e3 * s, 3) for s in found["server"]],
        "added_ms_per_token": round(1e3 * statistics.median(added), 3),
        "engine_cpu_ms_per_token": round(1e3 * statistics.median(found["engine_cpu"]), 4),
        "server_cpu_ms_per_token": round(1e3 * statistics.median(found["server_cpu"]), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    about = machine("torch", "fastapi", "uvicorn")
    figures = measure(given.rounds)
    write_json(given.out, {"machine": about, **figures})
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
