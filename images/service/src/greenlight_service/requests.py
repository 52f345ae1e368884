"""Reads and checks what a client sent, before anything reaches the model."""

from __future__ import annotations

import json
from typing import Any

PIXELS = 64
"""An image is 8x8 pixels, row by row."""
BRIGHTEST = 16.0
"""A pixel is a number from 0 (background) to 16 (ink)."""


class BadRequestError(ValueError):
    """The request cannot be answered; the message is for the client."""


def parse(body: bytes, max_rows: int) -> list[list[float]]:
    """Returns the images of a request's body; raises BadRequestError with the place of the first fault."""
    try:
        document = json.loads(body, parse_constant=_refuse_constant)
    except BadRequestError:
        raise
    except RecursionError:
        raise BadRequestError("the body is nested too deeply") from None
    except ValueError as fault:
        raise BadRequestError(f"the body is not JSON: {fault}") from None
    if not isinstance(document, dict):
        raise BadRequestError('the body must be an object like {"inputs": [[64 numbers], ...]}')
    for key in document:
        if key != "inputs":
            raise BadRequestError(f"unknown key {key[:40]!r}: the body has one key, inputs")
    rows = document.get("inputs")
    if not isinstance(rows, list) or not rows:
        raise BadRequestError("inputs must be a list of at least one image")
    if len(rows) > max_rows:
        raise BadRequestError(f"inputs has {len(rows)} images: send at most {max_rows} at once")
    for index, row in enumerate(rows):
        _check_row(index, row)
    return rows


def _refuse_constant(name: str) -> float:
    raise BadRequestError(f"the body has {name}: every pixel must be a finite number")


def _check_row(index: int, row: Any) -> None:
    if not isinstance(row, list):
        raise BadRequestError(f"inputs[{index}] must be a list of {PIXELS} numbers")
    if len(row) != PIXELS:
        raise BadRequestError(f"inputs[{index}] has {len(row)} numbers: an image has {PIXELS}")
    for position, value in enumerate(row):
        # bool is an int in Python, but true is no pixel; NaN fails the comparison.
        if type(value) not in (int, float) or not 0 <= value <= BRIGHTEST:
            raise BadRequestError(f"inputs[{index}][{position}] must be a number from 0 to {BRIGHTEST:g}")
