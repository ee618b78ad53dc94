"""A small model behind a real server on this machine, for tests of what clients see."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import uvicorn

from eagle_model.data.processor import Processor, ProcessorConfig
from eagle_model.data.sampling import SamplingConfig
from eagle_model.data.tokenizer import train_tokenizer
from eagle_model.infer.engine import Engine
from eagle_model.infer.server import ServerConfig, Service, make_app
from eagle_model.model.config import tiny
from eagle_model.model.eagle import Eagle

CONTEXT = 512


def small_processor() -> Processor:
    sampling = SamplingConfig(context_tokens=CONTEXT, min_frames=2, max_frames=16)
    tokenizer = train_tokenizer(["Where? A cat. What moves? Hello"], 300)
    return Processor(tokenizer, ProcessorConfig(tile_px=28, patch_px=7, sampling=sampling))


def small_model(processor: Processor) -> Eagle:
    torch.manual_seed(0)
    vocab_size = processor.tokenizer.get_vocab_size()
    return Eagle(tiny(vocab_size=vocab_size, image_token_id=processor.encoder.context_id)).eval()


def small_engine(**sizes: int) -> Engine:
    processor = small_processor()
    return Engine(small_model(processor), processor, **sizes)


@dataclass(frozen=True)
class Running:
    url: str
    engine: Engine
    service: Service

    def is_idle(self) -> bool:
        """Whether nothing is left of any request."""
        stats = self.engine.stats()
        return not (stats.queued or stats.running or stats.blocks_used or self.service.num_open)

    def wait_until_idle(self, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not self.is_idle():
            assert time.monotonic() < end, self.engine.stats()
            time.sleep(0.01)


@contextlib.contextmanager
def running(folder: Path, config: ServerConfig, engine: Engine | None = None) -> Iterator[Running]:
    """The server on a free port, ready; `folder` is for clients' files."""
    engine = engine or small_engine()
    folder.mkdir(exist_ok=True)
    app = make_app(engine, config, folder=folder)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not app.state.service.is_ready:
                assert thread.is_alive()
                time.sleep(0.01)
            yield Running(url, engine, app.state.service)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
