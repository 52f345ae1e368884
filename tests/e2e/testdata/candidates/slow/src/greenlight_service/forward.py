"""A candidate that answers right, but more than ten times slower than it should."""

from __future__ import annotations

import time

import torch

from greenlight_service.model import DigitClassifier

DELAY_SECONDS = 0.05
"""A request usually takes 1 to 3 ms in all."""


def probabilities(model: DigitClassifier, images: torch.Tensor) -> torch.Tensor:
    """Waits, then answers as the good version does."""
    time.sleep(DELAY_SECONDS)
    return torch.softmax(model(images), dim=1)
