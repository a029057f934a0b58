"""``onepeace serve``: embeddings and search over HTTP, and a page to search one's own files.

``/v1/embeddings`` takes what OpenAI's clients send: texts, and other modalities as data URLs, whose first word is the
modality (``data:image/png;base64,…``, ``data:audio/wav;base64,…``). ``/v1/search`` takes a weighted mixture of such
inputs and of items that were found. Nothing that a client sends is ever read as a path.

d = embedding width, N = items.
"""

import asyncio
import base64
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated, Any, Literal

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.exceptions import HTTPException

from onepeace_lightning.inference.batcher import Batcher, RefusedError
from onepeace_lightning.inference.gallery import Gallery
from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.modalities.tokenizers.base import whole_characters

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
        request_bytes: of one request's body.
        open_bytes: of the bodies of all requests that are being answered.
        inputs: of one request.
        waiting: inputs that wait for the model, over all requests; more are refused with 503.
        characters: of a text.
        seconds: until a request is given up.
        hits: of one search.
    """

    request_bytes: int = 20_000_000
    open_bytes: int = 500_000_000
    inputs: int = 256
    waiting: int = 2048
    characters: int = 20_000
    seconds: float = 60.0
    hits: int = 200


def _whole(given: Any) -> Any:
    """JSON may hold half of a character that was cut in two, which is left out as everywhere else."""
    return whole_characters(given) if isinstance(given, str) else given


Text = Annotated[str, BeforeValidator(_whole)]


class EmbeddingsRequest(BaseModel):
    """The body of ``/v1/embeddings``."""

    model_config = ConfigDict(extra="ignore")
    input: Text | list[Text]
    model: Text = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)


class Part(BaseModel):
    """One part of a search: an input or a row of the index, and its weight."""

    input: Text | None = None
    row: int | None = Field(default=None, ge=0)
    weight: float = Field(default=1.0, ge=-100, le=100, allow_inf_nan=False)


class SearchRequest(BaseModel):
    """The body of ``/v1/search``."""

    query: list[Part] = Field(min_length=1, max_length=16)
    k: int = Field(default=24, ge=1)


class Guard:
    """Middleware: asks for the key, and refuses bodies that are too large before they are read."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], limits: Limits, key: str | None) -> None:
        self.app, self.limits, self.key, self.open_bytes = app, limits, key, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        if self.key is not None and scope["path"].startswith(("/v1/", "/metrics")):
            given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
            if not hmac.compare_digest(given, self.key.encode()):
                refused = RefusedError(401, "invalid_api_key", "give the API key: Authorization: Bearer KEY")
                return await _error(refused)(scope, receive, send)
        if scope["method"] in ("GET", "HEAD"):
            return await self.app(scope, receive, send)
        body = bytearray()
        try:
            await asyncio.wait_for(self._read(body, headers.get(b"content-length", b""), receive), self.limits.seconds)
            messages = [{"type": "http.request", "body": bytes(body), "more_body": False}]

            async def replay() -> MutableMapping[str, Any]:
                return messages.pop() if messages else await receive()

            return await self.app(scope, replay, send)
        except RefusedError as refused:
            return await _error(refused)(scope, receive, send)
        except TimeoutError:
            return await _error(RefusedError(408, "slow", "the request did not arrive in time"))(scope, receive, send)
        finally:
            self.open_bytes -= len(body)

    async def _read(self, body: bytearray, declared: bytes, receive: Receive) -> None:
        """Read a request's body.

        Raises:
            RefusedError: it is too large, or too much is being answered at the time.
        """
        more = True
        while more:
            if max(len(body), int(declared) if declared.isdigit() else 0) > self.limits.request_bytes:
                raise RefusedError(413, "too_large", f"at most {self.limits.request_bytes} bytes are accepted")
            if self.open_bytes > self.limits.open_bytes:
                raise RefusedError(503, "busy", "too many large requests at a time; try again in a moment")
            message = await receive()
            if message["type"] != "http.request":
                raise RefusedError(400, "incomplete", "the request ended before its body did")
            chunk = message.get("body", b"")
            body += chunk
            self.open_bytes += len(chunk)
            more = message.get("more_body", False)


def _error(refused: RefusedError) -> JSONResponse:
    error = {"message": str(refused), "type": "invalid_request_error", "param": None, "code": refused.code}
    headers = {"Retry-After": "1"} if refused.status == 503 else None
    return JSONResponse({"error": error}, refused.status, headers)


def make_app(
    model: OnePeace,
    *,
    name: str = "onepeace",
    gallery: Gallery | None = None,
    api_key: str | None = None,
    limits: Limits = Limits(),
    batch_size: int = 32,
) -> FastAPI:
    """The service as an ASGI application.

    Args:
        model: with contrastive heads.
        name: what clients call it.
        gallery: embedded files to search; None: there is no search and no page.
        api_key: what clients must send; None: anybody may ask.
        limits: of requests.
        batch_size: inputs that go through the model together.
    """
    batcher = Batcher(model, batch_size=batch_size, waiting=limits.waiting)
    registry = CollectorRegistry()
    requests = Counter("onepeace_requests", "Requests by path and status.", ["path", "status"], registry=registry)
    seconds = Histogram(
        "onepeace_request_seconds", "Seconds from a request to its answer.", ["path"], registry=registry
    )
    sizes = Histogram(
        "onepeace_batch_size", "Inputs that went through the model together.", buckets=[1, 2, 4, 8, 16, 32, 64],
        registry=registry,
    )  # fmt: skip
    Gauge("onepeace_waiting", "Inputs that wait for the model.", registry=registry).set_function(
        lambda: batcher.admitted
    )
    batcher.sizes = sizes.observe

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(batcher.run())
        yield
        worker.cancel()

    app = FastAPI(title="onepeace", lifespan=running, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, limits=limits, key=api_key)

    @app.exception_handler(RefusedError)
    async def _refused(request: Request, refused: RefusedError) -> JSONResponse:
        return _error(refused)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "body"
        return _error(RefusedError(400, "invalid_request", f"{where}: {first['msg']}"))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        return _error(
            RefusedError(error.status_code, "not_found" if error.status_code == 404 else "error", error.detail)
        )

    @app.middleware("http")
    async def _measured(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        start = time.perf_counter()
        response = await call(request)
        route = request.scope.get("route")
        path = getattr(route, "path", "other")
        requests.labels(path, str(response.status_code)).inc()
        seconds.labels(path).observe(time.perf_counter() - start)
        return response

    async def embedded(inputs: list[str]) -> np.ndarray:
        if not 1 <= len(inputs) <= limits.inputs:
            raise RefusedError(400, "invalid_request", f"{len(inputs)} inputs; give 1 to {limits.inputs}")
        try:
            return await asyncio.wait_for(batcher.embed(inputs, limits.characters), limits.seconds)
        except TimeoutError as error:
            raise RefusedError(504, "timeout", f"no answer within {limits.seconds:g} s; try fewer inputs") from error

    @app.post("/v1/embeddings")
    async def _embeddings(body: EmbeddingsRequest) -> JSONResponse:
        inputs = [body.input] if isinstance(body.input, str) else body.input
        rows = await embedded(inputs)
        if body.dimensions is not None:
            if body.dimensions > rows.shape[1]:
                raise RefusedError(
                    400, "invalid_request", f"dimensions is {body.dimensions}; the model has {rows.shape[1]}"
                )
            rows = rows[:, : body.dimensions]
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
        in_base64 = body.encoding_format == "base64"
        numbers = [
            base64.b64encode(row.astype("<f4").tobytes()).decode() if in_base64 else row.tolist() for row in rows
        ]
        data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(numbers)]
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        return JSONResponse({"object": "list", "data": data, "model": body.model or name, "usage": usage})

    @app.get("/v1/models")
    async def _models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "onepeace"}]}

    @app.get("/health")
    async def _health() -> dict[str, Any]:
        return {"status": "ok", "model": name, "modalities": list(model.config.adapters), "waiting": batcher.admitted}

    @app.get("/metrics")
    async def _metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    if gallery is not None:
        _add_search(app, gallery, embedded, limits)
    return app


def _add_search(
    app: FastAPI, gallery: Gallery, embedded: Callable[[list[str]], Awaitable[np.ndarray]], limits: Limits
) -> None:
    """The routes that search, and the page."""
    page = files(__package__).joinpath("search_page.html").read_text(encoding="utf-8")

    @app.get("/", response_class=HTMLResponse)
    async def _page() -> str:
        return page

    @app.post("/v1/search")
    async def _search(body: SearchRequest) -> dict[str, Any]:
        if body.k > limits.hits:
            raise RefusedError(400, "invalid_request", f"k is {body.k}; at most {limits.hits} hits are given")
        if wrong := [part for part in body.query if (part.input is None) == (part.row is None)]:
            raise RefusedError(
                400, "invalid_request", f"{len(wrong)} parts of the query have not either an input or a row"
            )
        if unknown := [part.row for part in body.query if part.row is not None and part.row >= len(gallery)]:
            raise RefusedError(404, "not_found", f"there is no row {unknown[0]}; the index has {len(gallery)}")
        inputs = [part.input for part in body.query if part.input is not None]
        rows = iter(await embedded(inputs)) if inputs else iter(())
        asked_d = np.zeros(gallery.width, np.float32)
        for part in body.query:
            if part.row is None:
                given_d = gallery.query(next(rows))
            else:
                given_d = await asyncio.to_thread(gallery.embedding, part.row)
            asked_d += part.weight * given_d
        try:
            query_d = gallery.query(asked_d)
        except ValueError as error:
            raise RefusedError(400, "invalid_request", str(error)) from error
        hits = await asyncio.to_thread(gallery.search, query_d, body.k)
        return {"hits": [hit._asdict() for hit in hits], "items": len(gallery)}

    @app.get("/v1/items/{row}", response_class=HTMLResponse)
    async def _item(row: int) -> str:
        if not 0 <= row < len(gallery):
            raise RefusedError(404, "not_found", f"there is no row {row}; the index has {len(gallery)}")
        try:
            return await asyncio.to_thread(lambda: gallery.html(gallery.item(row)))
        except (OSError, ValueError) as error:
            raise RefusedError(404, "not_found", "the file is not there any more") from error


def serve(
    *,
    model: str,
    embeddings: list[str] | None = None,
    root: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    batch_size: int = 32,
    bpe_dir: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> None:
    """Serve embeddings, and with embedded files search and a page to search one's files.

    Args:
        model: a folder, a checkpoint, or a name on the hub.
        embeddings: files and folders that ``onepeace embed`` wrote with the same model; with an index (``onepeace
            index``) they are searched by it, others are held in memory.
        root: where the embedded files are now, if they were moved.
        host: the address to listen on; only this machine reaches the default.
        port: to listen on.
        api_key: what clients must send as ``Authorization: Bearer KEY``; needed to listen on another address.
        batch_size: inputs that go through the model together.
        bpe_dir: folder with the vocabulary, for the original's checkpoints.
        device: where to compute, such as cuda; by default a GPU where there is one.
        dtype: float32, bfloat16 or float16; the weights' own by default.

    Raises:
        ValueError: embeddings of another model, or an address that others reach without a key.
    """
    if host not in ("127.0.0.1", "localhost", "::1") and api_key is None:
        raise ValueError(f"--host {host} lets others in: give --api-key, which clients then must send")
    onepeace = OnePeace.from_pretrained(model, bpe_dir=bpe_dir, device=device, dtype=dtype)
    gallery = None if embeddings is None else Gallery(embeddings, onepeace, root, name=model, keep=True)
    app = make_app(onepeace, name=model, gallery=gallery, api_key=api_key, batch_size=batch_size)
    print(f"serving {model} on http://{host}:{port}" + (f", {len(gallery)} items to search" if gallery else ""))
    uvicorn.run(app, host=host, port=port, log_level="warning", limit_concurrency=1024, timeout_keep_alive=5)
