"""Fixtures: a trained model, and running services."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.running import SERVICE_FOLDER, RunningService

Starter = Callable[..., RunningService]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that the image build made; outside of a build one is trained in a short run."""
    pytest.importorskip("torch")
    built = Path(os.environ.get("GREENLIGHT_MODEL_FOLDER", "/opt/app/model"))
    if (built / "model.json").exists():
        return built
    from greenlight_service.model import save
    from training import digits, fit

    fit.make_deterministic()
    part, _ = digits.read(SERVICE_FOLDER / "data" / "digits.csv.gz")
    folder = tmp_path_factory.mktemp("model")
    save(fit.fit(part, seed=1, epochs=8, channels=8, hidden=64), folder, {})
    return folder


@pytest.fixture
def start() -> Iterator[Starter]:
    """Starts services that end with the test."""
    running: list[RunningService] = []

    def start_one(**settings: str) -> RunningService:
        service = RunningService(**settings)
        running.append(service)
        return service

    yield start_one
    for service in running:
        service.stop()


@pytest.fixture(scope="module")
def ready_service(model_folder: Path) -> Iterator[RunningService]:
    """A service that is ready, shared by a file's tests."""
    service = RunningService(
        model_folder=str(model_folder), colour="blue", version="v1.0.0-abc1234", max_rows="8", max_body_bytes="65536"
    )
    try:
        service.wait_ready()
        yield service
    finally:
        service.stop()
