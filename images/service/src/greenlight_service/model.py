"""The network, and how its weights are kept.

Training and serving share this file: the architecture travels in the weights' metadata, so weights of another
architecture are refused by name instead of failing somewhere in the first forward pass.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

ARCHITECTURE = "digits-cnn-1"
CLASSES = 10
SIDE = 8
WEIGHTS_NAME = "weights.safetensors"
RECORD_NAME = "model.json"


class WeightsError(RuntimeError):
    """The weights cannot be used; the message says what is wrong with which file."""


class DigitClassifier(nn.Module):
    """Two convolutions and two dense layers over an 8x8 image; answers one logit for each digit."""

    def __init__(self, channels: int = 8, hidden: int = 64) -> None:
        super().__init__()
        self.shape: dict[str, Any] = {"architecture": ARCHITECTURE, "channels": channels, "hidden": hidden}
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * channels * (SIDE // 2) ** 2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, CLASSES),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Takes pixels from 0 to 16, shape [n, 64]; returns logits, shape [n, 10]."""
        scaled = images.reshape(-1, 1, SIDE, SIDE) / 8.0 - 1.0
        logits: torch.Tensor = self.layers(scaled)
        return logits


def save(model: DigitClassifier, folder: Path, facts: dict[str, Any]) -> str:
    """Writes weights.safetensors and model.json (facts and checksum) into folder; returns the weights' SHA-256."""
    content = save_tensors(
        {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()},
        # One key: the order of several is not fixed, and equal weights must have equal checksums.
        metadata={"model": json.dumps(model.shape)},
    )
    checksum = hashlib.sha256(content).hexdigest()
    # Facts about the run are kept beside the weights and not in them, for the same reason.
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_NAME).write_bytes(content)
    record = {"architecture": ARCHITECTURE, "weightsSha256": checksum, **facts}
    (folder / RECORD_NAME).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    return checksum


def load(folder: Path) -> tuple[DigitClassifier, str]:
    """Reads the model from folder, on the CPU and in evaluation mode; returns it and the weights' SHA-256.

    Raises WeightsError if a file is missing, the checksum is not the recorded one, or the weights do not fit.
    """
    weights_file = folder / WEIGHTS_NAME
    try:
        content = weights_file.read_bytes()
        record = json.loads((folder / RECORD_NAME).read_text())
        expected = record["weightsSha256"]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise WeightsError(f"cannot read the model in {folder}: {fault!r}") from fault
    checksum = hashlib.sha256(content).hexdigest()
    if checksum != expected:
        raise WeightsError(f"{weights_file} has SHA-256 {checksum}, {RECORD_NAME} says {expected}")
    try:
        tensors = load_tensors(content)
        shape = _shape(content)
        model = DigitClassifier(channels=shape["channels"], hidden=shape["hidden"])
        model.load_state_dict(tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as fault:
        raise WeightsError(f"{weights_file} does not fit the model: {fault}") from fault
    return model.eval(), checksum


def _shape(content: bytes) -> dict[str, Any]:
    """Reads the metadata from the bytes whose checksum was verified, instead of opening the file a second time."""
    header_length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_length])
    shape: dict[str, Any] = json.loads(header["__metadata__"]["model"])
    if shape["architecture"] != ARCHITECTURE:
        raise ValueError(f"the architecture is {shape['architecture']!r}, this code has {ARCHITECTURE!r}")
    return shape
