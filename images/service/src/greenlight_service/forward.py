"""The step from a batch of images to answers: the one place where the service's numbers are made."""

from __future__ import annotations

import torch

from greenlight_service.faults import NotFiniteError
from greenlight_service.model import DigitClassifier


def probabilities(model: DigitClassifier, images: torch.Tensor) -> torch.Tensor:
    """Returns each digit's probability for each image, shape [n, 10], on the model's device."""
    answer = torch.softmax(model(images), dim=1)
    if not bool(torch.isfinite(answer).all()):
        raise NotFiniteError("the model answered NaN or infinity")
    return answer
