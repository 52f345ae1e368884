"""Weights and training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from greenlight_service import model as models  # noqa: E402 - needs PyTorch
from greenlight_service.faults import NotFiniteError  # noqa: E402
from greenlight_service.forward import probabilities  # noqa: E402
from tests.running import SERVICE_FOLDER  # noqa: E402
from training import digits, fit  # noqa: E402


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models.save(models.DigitClassifier(channels=2, hidden=4), tmp_path, {"accuracy": 0.5})
    return tmp_path


def _record(folder: Path, content: bytes) -> None:
    """Makes content the weights, with a checksum that fits."""
    (folder / models.WEIGHTS_NAME).write_bytes(content)
    record = {"weightsSha256": hashlib.sha256(content).hexdigest()}
    (folder / models.RECORD_NAME).write_text(json.dumps(record))


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    written = models.DigitClassifier(channels=3, hidden=5)
    checksum = models.save(written, tmp_path, {})
    read, found = models.load(tmp_path)
    assert found == checksum == models.save(written, tmp_path / "again", {})
    assert not read.training
    for name, tensor in written.state_dict().items():
        assert torch.equal(tensor, read.state_dict()[name])


def test_refuses_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(models.WeightsError, match="cannot read the model"):
        models.load(tmp_path / "missing")


def test_refuses_another_checksum(folder: Path) -> None:
    weights = folder / models.WEIGHTS_NAME
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(models.WeightsError, match="has SHA-256"):
        models.load(folder)


def test_refuses_truncated_weights(folder: Path) -> None:
    _record(folder, (folder / models.WEIGHTS_NAME).read_bytes()[:-8])
    with pytest.raises(models.WeightsError, match="does not fit"):
        models.load(folder)


def test_refuses_weights_of_another_shape(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "ARCHITECTURE", "digits-cnn-2")
    with pytest.raises(models.WeightsError, match="'digits-cnn-1', this code has 'digits-cnn-2'"):
        models.load(folder)


def test_never_unpickles(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (type(marker).touch, (str(marker),))

    torch.save(Attack(), tmp_path / "weights.pt")
    _record(folder, (tmp_path / "weights.pt").read_bytes())
    with pytest.raises(models.WeightsError):
        models.load(folder)
    assert not marker.exists()


def test_an_answer_that_is_not_finite_is_refused() -> None:
    classifier = models.DigitClassifier(channels=2, hidden=4)
    with pytest.raises(NotFiniteError):
        probabilities(classifier, torch.full((1, 64), float("nan")))


def test_training_is_repeatable() -> None:
    fit.make_deterministic()
    part, held_out = digits.read(SERVICE_FOLDER / "data" / "digits.csv.gz")
    assert (len(part.rows), len(held_out.rows)) == (1437, 360)
    few = digits.Part(part.images[:256], part.labels[:256], part.rows[:256])
    first, second, other = (fit.fit(few, seed=seed, epochs=1, channels=4, hidden=8) for seed in (1, 1, 2))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    assert not torch.equal(first.state_dict()["layers.0.weight"], other.state_dict()["layers.0.weight"])


def test_training_refuses_other_data(tmp_path: Path) -> None:
    file = tmp_path / "digits.csv.gz"
    file.write_bytes(b"other")
    with pytest.raises(ValueError, match="expected 09f66e"):
        digits.read(file)
