"""What a client may send."""

from __future__ import annotations

import json

import pytest

from greenlight_service.requests import BadRequestError, parse

IMAGE = [0, 16, 7.5, *[3] * 61]


def test_accepts_images() -> None:
    assert parse(json.dumps({"inputs": [IMAGE, IMAGE]}).encode(), 2) == [IMAGE, IMAGE]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b"[]", "must be an object"),
        (b"{}", "at least one image"),
        (b'{"inputs": []}', "at least one image"),
        (b'{"inputs": {}}', "at least one image"),
        (b'{"input": []}', "unknown key 'input'"),
        (b'{"inputs": [7]}', r"inputs\[0\] must be a list"),
        (json.dumps({"inputs": [IMAGE] * 3}).encode(), "3 images: send at most 2"),
        (json.dumps({"inputs": [IMAGE, IMAGE[1:]]}).encode(), r"inputs\[1\] has 63 numbers"),
        (json.dumps({"inputs": [[*IMAGE[:63], float("nan")]]}).encode(), "the body has NaN"),
        (json.dumps({"inputs": [[*IMAGE[:63], float("inf")]]}).encode(), "the body has Infinity"),
        (json.dumps({"inputs": [[*IMAGE[:63], 16.1]]}).encode(), r"inputs\[0\]\[63\] must be a number"),
        (json.dumps({"inputs": [[-1, *IMAGE[1:]]]}).encode(), r"inputs\[0\]\[0\] must be a number"),
        (json.dumps({"inputs": [["7", *IMAGE[1:]]]}).encode(), r"inputs\[0\]\[0\] must be a number"),
        (json.dumps({"inputs": [[True, *IMAGE[1:]]]}).encode(), r"inputs\[0\]\[0\] must be a number"),
        (json.dumps({"inputs": [[None, *IMAGE[1:]]]}).encode(), r"inputs\[0\]\[0\] must be a number"),
        (json.dumps({"inputs": [[10**400, *IMAGE[1:]]]}).encode(), r"inputs\[0\]\[0\] must be a number"),
        (b'{"inputs": [[1e999]]}', r"inputs\[0\] has 1 numbers"),
    ],
)
def test_refuses(body: bytes, message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        parse(body, 2)
