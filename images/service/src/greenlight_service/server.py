"""Starts and stops the HTTP server: uvicorn with a drain before its own graceful shutdown."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from types import FrameType

import uvicorn

from greenlight_service import application, logs
from greenlight_service.lifecycle import Lifecycle
from greenlight_service.protocol import LimitedProtocol
from greenlight_service.settings import Settings, SettingsError

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 120
"""Longer than the usual clients and proxies keep an idle connection (Go 90 s, nginx 60 s): they close first, so a
request never meets a connection that this side is just closing."""


class DrainingServer(uvicorn.Server):
    """On SIGTERM or SIGINT keeps accepting for the drain time, then finishes what is in flight and exits with 0.

    Taking a pod out of a Service takes effect some time after the pod is told to stop; who stops listening at once
    refuses the requests in between. A second signal ends the process at once.
    """

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, drain_seconds: float) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._drain_seconds = drain_seconds
        self._drained_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts listening and says where."""
        await super().startup(sockets=sockets)
        for server in self.servers:
            for listener in server.sockets:
                host, port = listener.getsockname()[:2]
                log.info("listening", extra={"fields": {"host": host, "port": port}})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops listening and waits for the answers in flight."""
        log.info("finishing", extra={"fields": {"connections": len(self.server_state.connections)}})
        await super().shutdown(sockets=sockets)
        log.info("stopped")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature is uvicorn's
        """Replaces uvicorn's handler, which stops accepting at once and later dies by the signal again."""
        if self._lifecycle.draining:
            log.warning("second signal: exiting at once", extra={"fields": {"signal": signal.Signals(sig).name}})
            sys.stdout.flush()
            os._exit(128 + sig)
        self._lifecycle.draining = True
        self._drained_at = time.monotonic() + self._drain_seconds
        fields = {"signal": signal.Signals(sig).name, "drainSeconds": self._drain_seconds}
        log.info("draining", extra={"fields": fields})

    async def on_tick(self, counter: int) -> bool:
        """Runs ten times a second."""
        if self._drained_at is not None and time.monotonic() >= self._drained_at:
            self.should_exit = True
        return await super().on_tick(counter)


def serve(settings: Settings) -> None:
    """Serves until a signal ends it."""
    logs.configure(settings)
    lifecycle = Lifecycle()
    config = uvicorn.Config(
        application.create(settings, lifecycle),
        host=settings.host,
        port=settings.port,
        http=LimitedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.finish_seconds)),
    )
    DrainingServer(config, lifecycle, settings.drain_seconds).run()


def main() -> None:
    """Entry point of the image."""
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as fault:
        sys.exit(_usage_error(str(fault)))
    serve(settings)
    # Everything is answered. Not sys.exit: it would wait for the model's thread, which may hang in a driver.
    sys.stdout.flush()
    os._exit(0)


def _usage_error(message: str) -> int:
    print(f"greenlight-service: {message}", file=sys.stderr)
    return 2
