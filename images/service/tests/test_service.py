"""The HTTP interface of a running service."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Starter
from tests.running import SERVICE_FOLDER, RunningService

IMAGE = [0] * 64
CASES = sorted((SERVICE_FOLDER / "cases").glob("*.json"))


def test_ready_tells_what_runs(ready_service: RunningService, model_folder: Path) -> None:
    facts = ready_service.wait_ready()
    assert facts["status"] == "ready"
    assert (facts["colour"], facts["version"], facts["device"]) == ("blue", "v1.0.0-abc1234", "cpu")
    assert facts["weightsSha256"] == hashlib.sha256((model_folder / "weights.safetensors").read_bytes()).hexdigest()
    assert re.match(r"\d+\.\d+", facts["torch"])
    for name in ("deviceName", "cuda", "cudnn", "driver", "computeCapability"):
        assert facts[name] is None
    assert (facts["gpuMemoryUsedBytes"], facts["gpuMemoryTotalBytes"]) == (None, None)


def test_cases_exist() -> None:
    assert len(CASES) >= 11


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_golden_case(ready_service: RunningService, file: Path) -> None:
    case = json.loads(file.read_text())
    body = json.dumps(case["request"]["body"]).encode()
    answer = ready_service.request(case["request"]["method"], case["request"]["path"], body)
    assert answer.status == case["expect"]["status"], answer.body
    document = answer.json()
    for value in case["expect"].get("values", []):
        assert _at(document, value["path"]) == pytest.approx(value["equals"], abs=value.get("absolute", 0))
    for output in document.get("outputs", []):
        assert math.fsum(output) == pytest.approx(1, abs=1e-5)


def _at(document: Any, path: str) -> Any:
    for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", path):
        document = document[name] if name else document[int(index)]
    return document


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"x", 400, "not JSON"),
        (json.dumps({"inputs": [[*IMAGE[1:], float("nan")]]}).encode(), 400, "NaN"),
        (json.dumps({"inputs": [IMAGE] * 9}).encode(), 400, "at most 8"),
        (b" " * 65_537, 413, "larger than 65536 bytes"),
        (b"0" * 50_000_000, 413, "larger than 65536 bytes"),
    ],
)
def test_bad_input_is_refused(ready_service: RunningService, body: bytes, status: int, message: str) -> None:
    answer = ready_service.request("POST", "/v1/infer", body)
    assert answer.status == status
    assert message in answer.json()["error"]
    assert ready_service.infer({"inputs": [IMAGE]}).status == 200


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/infer", 405), ("GET", "/", 404)])
def test_unknown_requests_get_json(ready_service: RunningService, method: str, path: str, status: int) -> None:
    answer = ready_service.request(method, path)
    assert answer.status == status
    assert answer.json()["error"]


def test_a_client_that_goes_away_does_no_harm(ready_service: RunningService) -> None:
    connection = ready_service.connect()
    connection.putrequest("POST", "/v1/infer")
    connection.putheader("content-length", "1000")
    connection.endheaders(b'{"inputs"')
    connection.close()
    assert ready_service.infer({"inputs": [IMAGE]}).status == 200


def test_answers_do_not_mix_between_clients(ready_service: RunningService) -> None:
    cases = [json.loads(file.read_text()) for file in CASES if re.fullmatch(r"digit-\d", file.stem)]
    wrong: list[str] = []

    def ask(case: dict[str, Any]) -> None:
        for _ in range(20):
            answer = ready_service.infer(case["request"]["body"])
            if answer.status != 200 or answer.json()["classes"] != [int(case["name"][-1])]:
                wrong.append(f"{case['name']}: {answer.body!r}")

    threads = [threading.Thread(target=ask, args=(case,)) for case in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_metrics_count_requests(ready_service: RunningService) -> None:
    ready_service.request("GET", "/no/such/path")
    text = ready_service.request("GET", "/metrics").body.decode()
    assert re.search(r'greenlight_requests_total\{colour="blue",path="other",status="404",version="v1.0.0', text)
    assert 'greenlight_ready{colour="blue",version="v1.0.0-abc1234"} 1.0' in text
    assert "/no/such/path" not in text


def test_asking_for_a_gpu_that_is_not_there(start: Starter, model_folder: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    service = start(device="cuda", model_folder=str(model_folder))
    answer = service.wait_reason("the device is cuda, but")
    assert "GREENLIGHT_DEVICE=cpu" in answer["reason"]
    assert service.request("GET", "/health").status == 200
    refused = service.infer({"inputs": [IMAGE]})
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    assert "the device is cuda, but" in refused.json()["error"]


def test_headers_without_end_are_refused(start: Starter) -> None:
    service = start()
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nx-long: ")
        with contextlib.suppress(OSError):
            for _ in range(1000):
                client.sendall(b"a" * 4096)
        with contextlib.suppress(OSError):
            assert client.recv(4096).startswith(b"HTTP/1.1 431 ")
    assert service.request("GET", "/health").status == 200


def test_long_headers_are_fine(start: Starter) -> None:
    connection = start().connect()
    connection.request("GET", "/health", headers={"x-long": "a" * 32_000})
    assert connection.getresponse().status == 200
    connection.close()


def test_a_model_that_is_not_there(start: Starter, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    service = start(model_folder=str(tmp_path))
    service.wait_reason("cannot read the model")
    assert service.request("GET", "/health").status == 200


def test_a_full_queue_refuses(start: Starter, model_folder: Path) -> None:
    service = start(model_folder=str(model_folder), queue="1", max_rows="2000")
    service.wait_ready()
    statuses: list[int] = []
    body = json.dumps({"inputs": [IMAGE] * 2000}).encode()

    def ask() -> None:
        statuses.append(service.request("POST", "/v1/infer", body).status)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 503}
    assert service.infer({"inputs": [IMAGE]}).status == 200
