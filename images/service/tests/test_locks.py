"""The locks and the pinned base."""

from __future__ import annotations

import json
import re

import pytest

from tests.running import SERVICE_FOLDER


def _pins(name: str) -> dict[str, str]:
    text = (SERVICE_FOLDER / name).read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-test.lock"])
def test_every_package_is_pinned_by_hash(name: str) -> None:
    text = re.sub(r"\\\n", "", (SERVICE_FOLDER / name).read_text())
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    assert lines
    for line in lines:
        assert re.match(r"^[a-z0-9-]+==\S+ ", line), line
        assert "--hash=sha256:" in line, line
    # Which index is used is the machine's business, and the base brings PyTorch.
    assert "://" not in text
    assert not _pins(name).keys() & {"torch", "numpy"}


def test_tests_run_with_the_service_s_versions() -> None:
    assert _pins("requirements.lock").items() <= _pins("requirements-test.lock").items()


def test_the_default_base_is_the_pinned_one() -> None:
    file = SERVICE_FOLDER.parent / "bases.json"
    if not file.exists():
        pytest.skip("bases.json lies outside of the build context")
    bases = json.loads(file.read_text())
    reference = bases["bases"][bases["default"]]["reference"]
    assert re.fullmatch(r"[^@]+@sha256:[0-9a-f]{64}", reference)
    assert f"ARG BASE={reference}\n" in (SERVICE_FOLDER / "Dockerfile").read_text()
