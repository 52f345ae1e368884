"""The HTTP interface: routes, answers and errors."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from greenlight_service.engine import Engine
from greenlight_service.faults import NotFiniteError, NotReadyError, OverloadedError
from greenlight_service.lifecycle import Lifecycle
from greenlight_service.metrics import Metrics
from greenlight_service.requests import BadRequestError, parse
from greenlight_service.settings import Settings

log = logging.getLogger(__name__)

MOST_DISCARDED = 64 * 1024 * 1024
"""Bytes of an oversized body that are read and thrown away, so that the client gets to read its 413."""


def create(settings: Settings, lifecycle: Lifecycle) -> ASGIApp:
    """Returns the application. It loads the model in the background while it already answers /health."""
    engine = Engine(settings)
    metrics = Metrics(settings.colour, settings.version)
    handlers = _Handlers(settings, lifecycle, engine, metrics)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        loading = asyncio.create_task(engine.load())
        yield
        loading.cancel()
        engine.close()

    routes = [
        Route("/health", handlers.health),
        Route("/ready", handlers.ready),
        Route("/v1/infer", handlers.infer, methods=["POST"]),
        Route("/metrics", handlers.metrics),
    ]
    application = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={HTTPException: _http_error, Exception: _internal_error},
    )
    return _Measured(application, {route.path for route in routes}, settings, lifecycle, metrics)


class _Handlers:
    def __init__(self, settings: Settings, lifecycle: Lifecycle, engine: Engine, metrics: Metrics) -> None:
        self._settings = settings
        self._lifecycle = lifecycle
        self._engine = engine
        self._metrics = metrics
        self._identity = {"colour": settings.colour, "version": settings.version}

    async def health(self, _: Request) -> Response:
        return _json({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        try:
            facts = await self._engine.facts()
        except NotReadyError as fault:
            return _json({"status": "not ready", "reason": str(fault), **self._identity}, 503)
        # A draining process still answers, and says so: a proxy may need it while the next one starts.
        return _json({"status": "draining" if self._lifecycle.draining else "ready", **self._identity, **facts})

    async def infer(self, request: Request) -> Response:
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                body = await _read_body(request, self._settings.max_body_bytes)
        except TimeoutError:
            return _error(408, f"the body did not arrive within {self._settings.body_seconds:g} s", close=True)
        except ClientDisconnect:
            return _error(400, "the client went away", close=True)
        if body is None:
            limit = self._settings.max_body_bytes
            return _error(413, f"the body is larger than {limit} bytes", close=True)
        try:
            rows = parse(body, self._settings.max_rows)
            answer = await self._engine.infer(rows)
        except BadRequestError as fault:
            return _error(400, str(fault))
        except (NotReadyError, OverloadedError) as fault:
            return _error(503, str(fault), retry=True)
        except NotFiniteError as fault:
            log.error("no answer: %s", fault)
            return _error(500, str(fault))
        self._metrics.passed(len(rows), answer.seconds)
        return _json(
            {
                "outputs": answer.outputs,
                "classes": answer.classes,
                "device": self._settings.device,
                **self._identity,
            }
        )

    async def metrics(self, _: Request) -> Response:
        text = self._metrics.render(
            waiting=self._engine.waiting, ready=not self._engine.reason, draining=self._lifecycle.draining
        )
        return Response(text, headers={"content-type": self._metrics.content_type})


class _Measured:
    """Counts and times every request, and closes each connection after its answer while draining."""

    def __init__(
        self, application: ASGIApp, paths: set[str], settings: Settings, lifecycle: Lifecycle, metrics: Metrics
    ) -> None:
        self._application = application
        self._paths = paths
        self._access_log = settings.access_log
        self._lifecycle = lifecycle
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._lifecycle.draining:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        try:
            await self._application(scope, receive, send_and_note)
        finally:
            seconds = time.perf_counter() - started
            # Paths are the client's choice: unknown ones share one label, or each would be kept in memory for good.
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.answered(path, status, seconds)
            if self._access_log:
                fields = {"method": scope["method"], "path": scope["path"], "status": status, "seconds": seconds}
                log.info("request", extra={"fields": fields})


async def _read_body(request: Request, limit: int) -> bytes | None:
    """Returns the body, or None if it is larger than limit bytes; never holds more than limit in memory."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size <= limit:
            parts.append(part)
        else:
            parts.clear()
            if size > MOST_DISCARDED:
                break
    return None if size > limit else b"".join(parts)


def _json(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = json.dumps(content, separators=(",", ":")).encode()
    return Response(body, status, headers, media_type="application/json")


def _error(status: int, message: str, *, retry: bool = False, close: bool = False) -> Response:
    headers = {}
    if retry:
        headers["retry-after"] = "1"
    if close:
        headers["connection"] = "close"
    return _json({"error": message}, status, headers)


async def _http_error(_: Request, fault: Exception) -> Response:
    if not isinstance(fault, HTTPException):
        raise TypeError(f"registered for HTTPException, got {fault!r}")
    response = _error(fault.status_code, fault.detail)
    response.headers.update(fault.headers or {})
    return response


async def _internal_error(_: Request, fault: Exception) -> Response:
    return _error(500, f"internal error: {type(fault).__name__}")
