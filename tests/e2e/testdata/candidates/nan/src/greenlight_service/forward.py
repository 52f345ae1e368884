"""A candidate that answers NaN, and sends it, as services do that check nothing."""

from __future__ import annotations

import torch

from greenlight_service.model import DigitClassifier


def probabilities(model: DigitClassifier, images: torch.Tensor) -> torch.Tensor:
    """Divides zero by zero: the usual way to a NaN."""
    logits = model(images)
    nothing = torch.zeros_like(logits)
    return nothing / nothing
