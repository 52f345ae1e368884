"""A candidate that never gets ready: its warm-up fails, so the process lives and /ready says why it answers 503."""

from __future__ import annotations

import torch

from greenlight_service.model import DigitClassifier


def probabilities(model: DigitClassifier, images: torch.Tensor) -> torch.Tensor:
    """Fails as a kernel does that was not compiled for the device."""
    raise RuntimeError(f"no kernel of {model.shape['architecture']} is available for the device {images.device}")
