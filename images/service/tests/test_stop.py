"""Stopping: no request is lost, and the process ends when and how it should."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import Starter
from tests.running import RunningService

WORKERS = 10
PACE_SECONDS = 0.1
"""Ten workers, ten requests a second each."""
INFERENCE = json.dumps({"inputs": [[0] * 64]}).encode()


@dataclass
class Traffic:
    """Clients of a Service: each new connection goes to the pod that the Service has at that time."""

    target: RunningService
    method: str
    path: str
    body: bytes | None
    answers: dict[int, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, *, keep_alive: bool) -> None:
        """Sends requests until told to stop; reconnects only when the server said that it closes."""
        connection = None
        while not self.stop.wait(PACE_SECONDS):
            if connection is None:
                pod = self.target
                connection = pod.connect()
            try:
                connection.request(self.method, self.path, self.body)
                answer = connection.getresponse()
                answer.read()
                if answer.status == 200:
                    self.answers[pod.port] = self.answers.get(pod.port, 0) + 1
                else:
                    self.failures.append(f"status {answer.status}")
                closes = answer.getheader("connection") == "close"
            except OSError as fault:
                self.failures.append(repr(fault))
                closes = True
            if closes or not keep_alive:
                connection.close()
                connection = None


@pytest.mark.parametrize("path", ["/health", "/v1/infer"])
def test_no_request_is_lost(start: Starter, path: str, request: pytest.FixtureRequest) -> None:
    settings = {"drain_seconds": "2"}
    if path == "/v1/infer":
        settings["model_folder"] = str(request.getfixturevalue("model_folder"))
    old, new = start(**settings), start(**settings)
    if path == "/v1/infer":
        old.wait_ready()
        new.wait_ready()
    traffic = Traffic(old, *(("POST", path, INFERENCE) if path == "/v1/infer" else ("GET", path, None)))
    clients = [
        threading.Thread(target=traffic.run, kwargs={"keep_alive": number % 2 == 0}) for number in range(WORKERS)
    ]
    for client in clients:
        client.start()
    time.sleep(1)
    old.terminate()
    time.sleep(0.5)  # as long as the endpoint's removal may take to reach every node
    traffic.target = new
    status = old.wait()
    time.sleep(0.5)
    traffic.stop.set()
    for client in clients:
        client.join()
    assert traffic.failures == []
    assert status == 0
    assert traffic.answers[old.port] > WORKERS
    assert traffic.answers[new.port] > WORKERS


def test_ready_while_draining(start: Starter, model_folder: Path) -> None:
    service = start(drain_seconds="60", model_folder=str(model_folder))
    service.wait_ready()
    service.terminate()
    while True:
        answer = service.request("GET", "/ready")
        if answer.json()["status"] == "draining":
            break
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert service.infer({"inputs": [[0] * 64]}).status == 200


def test_a_request_in_flight_is_finished(start: Starter) -> None:
    service = start(drain_seconds="0.2", finish_seconds="30")
    connection = service.connect()
    connection.putrequest("POST", "/v1/infer")
    connection.putheader("content-length", "2")
    connection.endheaders(b"{")
    time.sleep(0.5)
    service.terminate()
    time.sleep(2)
    assert service.process.poll() is None
    connection.send(b"}")
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("connection")) == (400, "close")
    assert service.wait() == 0


def test_an_idle_connection_does_not_hold_the_process(start: Starter) -> None:
    service = start(drain_seconds="0.2")
    connection = service.connect()
    connection.request("GET", "/health")
    connection.getresponse().read()
    service.terminate()
    assert service.wait() == 0


def test_a_body_that_never_comes_does_not_hold_the_process(start: Starter) -> None:
    service = start(drain_seconds="0", finish_seconds="1")
    connection = service.connect()
    connection.putrequest("POST", "/v1/infer")
    connection.putheader("content-length", "2")
    connection.endheaders(b"{")
    time.sleep(0.5)
    service.terminate()
    assert service.wait() == 0


def test_a_hanging_model_does_not_hold_the_process(start: Starter, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    # Opening a pipe that nobody writes to waits for ever, as a broken driver does.
    os.mkfifo(tmp_path / "weights.safetensors")
    service = start(drain_seconds="0.2", model_folder=str(tmp_path))
    time.sleep(1)
    service.terminate()
    assert service.wait() == 0


def test_a_second_signal_ends_it_at_once(start: Starter) -> None:
    service = start(drain_seconds="3600")
    service.terminate()
    while not any('"draining"' in line for line in service.lines):
        time.sleep(0.05)
    service.terminate()
    assert service.wait() == 128 + 15


def test_a_wrong_setting_is_a_usage_error() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import sys; from greenlight_service.server import main; sys.exit(main())"],
        env={"GREENLIGHT_DEVICE": "tpu", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr == "greenlight-service: GREENLIGHT_DEVICE is 'tpu': use one of cuda, cpu\n"


def test_without_pytorch_the_reason_says_so(start: Starter) -> None:
    if importlib.util.find_spec("torch"):
        pytest.skip("PyTorch is installed")
    assert "torch" in start().wait_reason("No module named")["reason"]
