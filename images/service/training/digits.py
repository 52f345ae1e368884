"""The data set: 1,797 handwritten digits of 8x8 pixels (data/README.md says where they come from)."""

from __future__ import annotations

import csv
import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
HELD_OUT_EVERY = 5
"""Every fifth image is held out: the writers follow one another in the file, so each part has all of them."""


@dataclass(frozen=True)
class Part:
    """Images, shape [n, 64] from 0 to 16, their digits, shape [n], and their rows in the file."""

    images: torch.Tensor
    labels: torch.Tensor
    rows: list[int]


def read(file: Path) -> tuple[Part, Part]:
    """Returns the training and the held-out part. Raises ValueError if the file is not the expected one."""
    content = file.read_bytes()
    checksum = hashlib.sha256(content).hexdigest()
    if checksum != SHA256:
        raise ValueError(f"{file} has SHA-256 {checksum}, expected {SHA256}")
    table = [[float(cell) for cell in line] for line in csv.reader(gzip.decompress(content).decode().splitlines())]
    held_out = [row for row in range(len(table)) if row % HELD_OUT_EVERY == 0]
    training = [row for row in range(len(table)) if row % HELD_OUT_EVERY != 0]
    return _part(table, training), _part(table, held_out)


def _part(table: list[list[float]], rows: list[int]) -> Part:
    images = torch.tensor([table[row][:-1] for row in rows], dtype=torch.float32)
    labels = torch.tensor([int(table[row][-1]) for row in rows])
    return Part(images, labels, rows)
