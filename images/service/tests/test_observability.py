"""Logs, metrics and the driver's version."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

from greenlight_service.engine import driver_version
from greenlight_service.logs import JsonFormatter
from greenlight_service.metrics import Metrics


def test_a_log_record_is_one_json_line() -> None:
    record = logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": "two\nlines"})
    record.fields = {"rows": 3, "colour": "cannot be replaced"}
    try:
        int("fault")
    except ValueError:
        record.exc_info = sys.exc_info()
    text = JsonFormatter("blue", "v1.0.0-abc1234").format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["message"], line["colour"], line["version"], line["rows"]) == (
        "two\nlines",
        "blue",
        "v1.0.0-abc1234",
        3,
    )
    assert "ValueError: " in line["trace"]


def test_metrics_carry_colour_and_version() -> None:
    metrics = Metrics("green", "v1")
    metrics.answered("/v1/infer", 200, 0.003)
    metrics.passed(4, 0.001)
    lines = metrics.render(waiting=2, ready=True, draining=False).decode().splitlines()
    assert 'greenlight_requests_total{colour="green",path="/v1/infer",status="200",version="v1"} 1.0' in lines
    assert 'greenlight_queue_requests{colour="green",version="v1"} 2.0' in lines
    assert all('colour="green"' in line and "version=" in line for line in lines if not line.startswith("#"))


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (x)\n", "570.86.15"),
        ("something else\n", None),
    ],
)
def test_driver_version(tmp_path: Path, text: str, version: str | None) -> None:
    file = tmp_path / "version"
    file.write_text(text)
    assert driver_version(file) == version
    assert driver_version(tmp_path / "missing") is None
