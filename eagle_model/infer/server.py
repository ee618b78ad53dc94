"""An OpenAI-compatible server for one model: `eagle serve FOLDER`.

    app = make_app(Engine.from_folder("my-eagle"), ServerConfig(), folder=Path("/tmp/files"))
    serve(app, host="127.0.0.1", port=8000, drain_seconds=30)

POST /v1/chat/completions   chat_request.py says what it takes, chat_answer.py what it gives
GET  /v1/models             the model, and its adapters by name
POST /v1/files, GET, DELETE films and pictures, to be named by their id
GET  /v1/seen/ID/K          a tile that the model saw when it gave the answer ID, as PNG
GET  /health, /ready, /metrics, and / with a page to try it

Every refusal is 4xx with OpenAI's error object and a sentence. A client that goes away ends its answers within a step.
The event loop only passes things on; whatever waits or computes is in threads (chat_work.py) and in the engine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import io
import json
import logging
import secrets
import signal
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eagle_model.data.contact_sheet import patches_to_pixels
from eagle_model.data.sample import DataError
from eagle_model.data.tokenizer import token_bytes
from eagle_model.infer import metrics as counts
from eagle_model.infer.chat_answer import ChatAnswer
from eagle_model.infer.chat_request import ChatRequest, parse_chat
from eagle_model.infer.chat_work import ChatWork, Inbox
from eagle_model.infer.engine import Engine, QueueFull
from eagle_model.infer.fetch import RequestError
from eagle_model.infer.media import MediaLimits, MediaStore, Upload

if TYPE_CHECKING:
    from eagle_model.infer.request import Request as Answering

PAGE = Path(__file__).parent / "page.html"
_MULTIPART_BYTES = 1 << 16  # limit: of the form around an uploaded file
_COPY_BYTES = 1 << 20
_KEPT_SHOWN = 64  # answers whose tiles can still be looked at
_log = logging.getLogger("eagle.server")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """Who may ask a server, for what, and how much."""

    name: str = "eagle"  # of the model, as clients name it
    adapters: tuple[str, ...] = ()  # that the engine knows, by the names that clients use as a model's
    api_keys: tuple[str, ...] = ()  # of which a client sends one; none: all may ask
    cors_origins: tuple[str, ...] = ()  # web pages of these may ask; none: this server's own page alone
    media: MediaLimits = field(default_factory=MediaLimits)
    max_body_bytes: int = 64 << 20  # limit: of a chat request, data URLs included; larger files go to /v1/files
    max_answers: int = 64  # limit: at once, waiting ones included; more are told to come again (429)
    request_seconds: float = 600.0  # limit: from a request's arrival to its answer's end

    def __post_init__(self) -> None:
        """Raises ValueError for two models of one name."""
        names = (self.name, *self.adapters)
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two models are named {twice[0]!r}; give the model and each adapter a name of its own.")


class Service:
    """What the routes share."""

    def __init__(self, engine: Engine, config: ServerConfig, folder: Path) -> None:
        self.engine, self.config = engine, config
        self.store = MediaStore(folder, config.media)
        self.metrics = counts.ServerMetrics(engine.stats, lambda: self.store.num_bytes)
        self.pool = ThreadPoolExecutor(config.max_answers, "answer")
        self.inbox: Inbox | None = None
        self.num_open = 0
        self.is_ending = False
        self.shown: OrderedDict[str, Answering] = OrderedDict()

    def start(self, asked: ChatRequest) -> ChatWork:
        """Raises RequestError: 429 where too many answers are open, 404 for another model, 503 without an engine."""
        config = self.config
        if self.engine.is_closed:
            raise RequestError("the engine has ended, and this server answers no more; start it again.", status=503)
        if asked.model is not None and asked.model not in (config.name, *config.adapters):
            names = ", ".join((config.name, *config.adapters))
            raise RequestError(
                f"there is no model {asked.model[:80]!r} here; there is {names}.", status=404, param="model"
            )
        if self.num_open + asked.n > config.max_answers:
            raise RequestError(
                f"{self.num_open} answers are under way, and {config.max_answers} is the most; ask again later.",
                status=429,
            )
        adapter = asked.model if asked.model in config.adapters else None
        self.inbox = self.inbox or Inbox(asyncio.get_running_loop())
        work = ChatWork(self.engine, self.store, asked, self.pool, self.metrics, self.inbox, adapter=adapter)
        self._count(asked.n)
        work.ended.add_done_callback(lambda _: self._count(-asked.n))
        late = asyncio.get_running_loop().call_later(config.request_seconds, lambda: work.cancel(is_late=True))
        work.ended.add_done_callback(lambda _: late.cancel())
        work.start()
        return work

    def _count(self, num: int) -> None:
        self.num_open += num
        self.metrics.open.set(self.num_open)

    @property
    def is_ready(self) -> bool:
        return self.engine.is_ready and not self.engine.is_closed and not self.is_ending

    def keep_shown(self, answer_id: str, request: Answering) -> None:
        self.shown[answer_id] = request
        while len(self.shown) > _KEPT_SHOWN:
            self.shown.popitem(last=False)


def make_app(engine: Engine, config: ServerConfig, *, folder: Path) -> FastAPI:
    """The application. Starts the engine's thread and closes the engine at its end.

    folder: the server's own, empty, for files of clients.
    """
    service = Service(engine, config, folder)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        warming = asyncio.get_running_loop().run_in_executor(None, engine.warm_up)
        warming.add_done_callback(_say_failure)
        yield
        service.is_ending = True
        service.pool.shutdown(wait=False, cancel_futures=True)
        engine.close()

    app = FastAPI(title="Eagle", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = service
    app.add_middleware(_Bounded, service=service)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(config.cors_origins), allow_methods=["*"], allow_headers=["*"]
        )
    app.include_router(_open_routes(service))
    app.include_router(_routes(service))
    _handle_errors(app)
    return app


def _say_failure(warming: asyncio.Future[None]) -> None:
    if not warming.cancelled() and (error := warming.exception()) is not None:
        _log.error("the first answer failed, and the server is not ready: %s", error)


def _open_routes(service: Service) -> APIRouter:
    """What needs no key: it tells nothing."""
    routes = APIRouter()

    @routes.get("/health")
    async def health() -> Response:
        is_well = not service.engine.is_closed
        return JSONResponse({"status": "ok" if is_well else "the engine has ended"}, 200 if is_well else 503)

    @routes.get("/ready")
    async def ready() -> Response:
        status = "ready" if service.is_ready else "not yet"
        return JSONResponse({"status": status}, 200 if service.is_ready else 503)

    @routes.get("/")
    async def page() -> Response:
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        headers = {
            "Content-Security-Policy": f"{policy}; img-src 'self' blob:; base-uri 'none'; frame-ancestors 'none'"
        }
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=headers)

    return routes


def _routes(service: Service) -> APIRouter:
    def check_key(request: Request) -> None:
        keys = service.config.api_keys
        given = request.headers.get("Authorization", "").removeprefix("Bearer ").encode()
        if keys and not any(hmac.compare_digest(given, key.encode()) for key in keys):
            raise RequestError("the API key is missing or wrong; send Authorization: Bearer KEY.", status=401)

    routes = APIRouter(dependencies=[Depends(check_key)])

    @routes.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        asked = parse_chat(await _json(request))
        work = service.start(asked)
        watch = asyncio.create_task(_cancel_when_gone(request, work))
        try:
            requests = await work.begun()
            answer = ChatAnswer(
                f"chatcmpl-{secrets.token_hex(12)}",
                asked.model or service.config.name,
                int(time.time()),
                bytes_of=partial(token_bytes, service.engine.processor.tokenizer),
            )
            service.keep_shown(answer.id, requests[0])
            if asked.stream:
                chunks = _chunks(work, asked, answer, requests, watch)
                return _Stream(chunks)
            async for _ in work.events():
                pass
            _need_time(work, service.config)
            return JSONResponse(answer.whole([request.result() for request in requests], requests[0].shown))
        except BaseException:
            work.cancel()
            if work.is_late:
                _need_time(work, service.config)
            raise
        finally:
            if not asked.stream:
                watch.cancel()

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        names = (service.config.name, *service.config.adapters)
        return {"object": "list", "data": [_model_json(name) for name in names]}

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name not in (service.config.name, *service.config.adapters):
            raise RequestError(f"there is no model {name[:80]!r} here; /v1/models lists them.", status=404)
        return _model_json(name)

    @routes.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=counts.CONTENT_TYPE)

    @routes.get("/v1/seen/{answer_id}/{number}")
    def seen(answer_id: str, number: int) -> Response:
        return Response(_tile_png(service, answer_id, number), media_type="image/png")

    _file_routes(routes, service.store)
    return routes


def _file_routes(routes: APIRouter, store: MediaStore) -> None:
    @routes.post("/v1/files")
    async def upload(request: Request) -> dict[str, Any]:
        async with request.form(max_files=1, max_fields=8) as form:
            file = form.get("file")
            if file is None or isinstance(file, str):
                raise RequestError(
                    "the form has no file; send multipart/form-data with a part named file.", param="file"
                )

            def chunks() -> Iterator[bytes]:
                while chunk := file.file.read(_COPY_BYTES):
                    yield chunk

            kept = await asyncio.to_thread(store.upload, chunks(), name=(file.filename or "file")[:200])
        return _file_json(kept)

    @routes.get("/v1/files")
    async def files() -> dict[str, Any]:
        return {"object": "list", "data": [_file_json(kept) for kept in store.uploads()], "has_more": False}

    @routes.get("/v1/files/{file_id}")
    async def file(file_id: str) -> dict[str, Any]:
        return _file_json(store.get(file_id))

    @routes.get("/v1/files/{file_id}/content")
    async def content(file_id: str) -> Response:
        headers = {"Content-Disposition": "attachment", "X-Content-Type-Options": "nosniff"}
        return FileResponse(store.get(file_id).path, media_type="application/octet-stream", headers=headers)

    @routes.delete("/v1/files/{file_id}")
    async def delete(file_id: str) -> dict[str, Any]:
        store.delete(file_id)
        return {"id": file_id, "object": "file", "deleted": True}


def _model_json(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "eagle"}


def _file_json(kept: Upload) -> dict[str, Any]:
    about = {"id": kept.id, "object": "file", "bytes": kept.num_bytes, "created_at": kept.created_at}
    return {**about, "filename": kept.name, "purpose": "user_data", "status": "processed"}


# -- answers


async def _json(request: Request) -> object:
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # what a web page may send without asking first is not this
        raise RequestError(f"the Content-Type is {kind[:60]!r}; needs application/json.", status=415)
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {str(error) or 'nested too deep'}.") from error


async def _cancel_when_gone(request: Request, work: ChatWork) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    work.cancel()


def _need_time(work: ChatWork, config: ServerConfig) -> None:
    if work.is_late:
        raise RequestError(
            f"the answer took longer than {config.request_seconds:g} s; ask for fewer tokens, frames or tiles.",
            status=408,
        )


async def _chunks(
    work: ChatWork, asked: ChatRequest, answer: ChatAnswer, requests: list[Answering], watch: asyncio.Task[None]
) -> AsyncIterator[str]:
    """Of a stream, as JSON; an error after its start is its last one."""
    try:
        for index, request in enumerate(requests):
            yield json.dumps(answer.first(index, request.shown if index == 0 else None), ensure_ascii=False)
        async for index, event in work.events():
            if event.text or event.logprobs or event.finish_reason is not None:
                yield answer.chunk_json(index, event)
        if work.is_late:
            yield json.dumps(_error_json("the answer took longer than this server gives it.", 408))
        if asked.include_usage:
            yield json.dumps(answer.usage([request.usage for request in requests]), ensure_ascii=False)
    except RequestError as error:  # a file of it that cannot be decoded
        yield json.dumps(_error_json(error.message, error.status))
    except Exception as error:
        _log.exception("an answer failed")
        yield json.dumps(_error_json(f"the answer failed: {type(error).__name__}.", 500))
    finally:
        watch.cancel()
        work.cancel()


class _Stream(Response):
    """Server-sent events. Once the client is gone, what is sent goes nowhere, and the answer ends by itself."""

    def __init__(self, chunks: AsyncIterator[str]) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self.chunks = chunks
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def put(data: str, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": more})

        async with contextlib.aclosing(self.chunks) as chunks:  # type: ignore[type-var]
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for chunk in chunks:
                await put(chunk)
            await put("[DONE]", more=False)


def _tile_png(service: Service, answer_id: str, number: int) -> bytes:
    """A tile as the model saw it. Raises RequestError, 404, for an answer that is forgotten or has no such tile."""
    request = service.shown.get(answer_id)
    if request is None or not 0 <= number < request.shown.num_tiles:
        raise RequestError(f"answer {answer_id[:60]!r} is not remembered, or has no tile {number}.", status=404)
    config = service.engine.processor.config
    patches_1PK = request.load_tiles(number, number + 1)
    tile_1YX3 = patches_to_pixels(patches_1PK, patch_px=config.patch_px, mean=config.mean, std=config.std)
    content = io.BytesIO()
    Image.fromarray(tile_1YX3[0].numpy()).save(content, "png")
    return content.getvalue()


# -- limits and errors


class _Bounded:
    """Ends bodies that are too large, whatever their Content-Length says, and counts responses."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        config, num_bytes = self.service.config, 0
        is_upload = scope["path"] == "/v1/files"
        limit = config.media.max_file_bytes + _MULTIPART_BYTES if is_upload else config.max_body_bytes

        async def bounded() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > limit:
                raise RequestError(f"the body is larger than {limit} bytes; a film goes to /v1/files.", status=413)
            return message

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = getattr(scope.get("route"), "path", "other")
                self.service.metrics.responses.labels(path, str(message["status"])).inc()
            await send(message)

        await self.app(scope, bounded, counted)


def _error_json(message: str, status: int, param: str | None = None) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def _handle_errors(app: FastAPI) -> None:
    def answer(message: str, status: int, param: str | None = None) -> Response:
        headers = {"Retry-After": "1"} if status == 429 else {"WWW-Authenticate": "Bearer"} if status == 401 else None
        content = json.dumps(_error_json(message, status, param))  # ASCII: a field's name may be half a surrogate pair
        return Response(content, status, headers, media_type="application/json")

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Response:
        return answer(error.message, error.status, error.param)

    @app.exception_handler(DataError)
    async def unusable(_: Request, error: DataError) -> Response:
        return answer(str(error), 400)

    @app.exception_handler(QueueFull)
    async def full(_: Request, error: QueueFull) -> Response:
        return answer(str(error), 429)

    @app.exception_handler(HTTPException)
    async def known(_: Request, error: HTTPException) -> Response:
        return answer(f"{error.detail.rstrip('.')}.", error.status_code)

    @app.exception_handler(RequestValidationError)
    async def unread(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return answer(f"{first['loc'][-1]} of the URL: {first['msg']}.", 400, str(first["loc"][-1]))

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return answer("the client went away before its request was whole.", 400)  # for nobody; no fault of the server's

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return answer(f"the server failed: {type(error).__name__}.", 500)


# -- running


class _Uvicorn(uvicorn.Server):
    """One that ends with the answers under way, and then returns, whichever signal came; the second one ends it now."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.force_exit or self.should_exit  # uvicorn's own waits for a SIGINT
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def read_media_limits(folders: list[Path], hosts: list[str], max_file_bytes: int, max_store_bytes: int) -> MediaLimits:
    """Raises ValueError for a folder that is none."""
    limits = MediaLimits(
        allowed=tuple(folders), hosts=tuple(hosts), max_file_bytes=max_file_bytes, max_store_bytes=max_store_bytes
    )
    limits.check()
    return limits


def serve(app: FastAPI, *, host: str, port: int, drain_seconds: int) -> None:
    """Serves until SIGTERM or SIGINT; then no more is accepted, and answers under way have drain_seconds to end."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=drain_seconds,
    )
    _Uvicorn(config).run()
