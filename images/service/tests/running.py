"""Starts the real service as a process of its own, as the image does."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVICE_FOLDER = Path(__file__).parent.parent
START_SECONDS = 120.0
"""Importing PyTorch alone can take many seconds on a loaded machine."""


@dataclass(frozen=True)
class Response:
    """What the service answered."""

    status: int
    body: bytes
    headers: dict[str, str]

    def json(self) -> Any:
        """Returns the body's document; NaN and Infinity are refused, as other languages' parsers do."""

        def refuse(name: str) -> float:
            raise ValueError(f"{name} is not JSON")

        return json.loads(self.body, parse_constant=refuse)


class RunningService:
    """One process of the service on a loopback port that the kernel chose."""

    def __init__(self, **settings: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GREENLIGHT_")}
        paths = [str(SERVICE_FOLDER / "src"), os.environ.get("PYTHONPATH", "")]
        environment |= {
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "GREENLIGHT_HOST": "127.0.0.1",
            "GREENLIGHT_PORT": "0",
            "GREENLIGHT_DEVICE": "cpu",
            **{f"GREENLIGHT_{name.upper()}": value for name, value in settings.items()},
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "greenlight_service"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self.port = 0
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._listening.wait(START_SECONDS) or not self.port:
            self.stop()
            raise RuntimeError("the service did not start:\n" + "\n".join(self.lines))

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if '"listening"' in line:
                self.port = json.loads(line)["port"]
                self._listening.set()
        self._listening.set()

    def connect(self) -> http.client.HTTPConnection:
        """Returns a connection of its own."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def request(self, method: str, path: str, body: bytes | None = None) -> Response:
        """Sends one request on a fresh connection."""
        connection = self.connect()
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return Response(answer.status, answer.read(), dict(answer.getheaders()))
        finally:
            connection.close()

    def infer(self, document: Any) -> Response:
        """Posts a document to /v1/infer."""
        return self.request("POST", "/v1/infer", json.dumps(document).encode())

    def wait_ready(self) -> dict[str, Any]:
        """Returns /ready's answer once it is 200."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            answer = self.request("GET", "/ready")
            if answer.status == 200:
                return dict(answer.json())
            if time.monotonic() > deadline:
                raise RuntimeError(f"not ready: {answer.body!r}\n" + "\n".join(self.lines))
            time.sleep(0.1)

    def wait_reason(self, part: str) -> dict[str, Any]:
        """Returns /ready's 503 answer once its reason contains part."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            answer = self.request("GET", "/ready")
            if answer.status == 503 and part in answer.json()["reason"]:
                return dict(answer.json())
            if time.monotonic() > deadline:
                raise RuntimeError(f"no such reason: {answer.body!r}")
            time.sleep(0.1)

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = 60) -> int:
        """Returns the exit status once the process has ended and its output is read."""
        status = self.process.wait(seconds)
        self._reader.join(seconds)
        return status

    def stop(self) -> None:
        """Ends the process whatever it does."""
        self.process.kill()
        self.process.wait()
        self._reader.join(10)
