"""Writes the golden cases: requests of which the answers are known, with tolerances that a retrained model keeps.

Several models are trained with different seeds and sizes. For each digit the held-out image becomes a case on which
they agree best; all must find the digit, with probabilities that lie close together. So a case does not depend on one
training run: it fails a model that is wrong, not one that is new. Run it when the architecture or the data change:

    python3 -m training.golden --out cases
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from greenlight_service.model import CLASSES, DigitClassifier
from training import digits
from training.fit import fit, make_deterministic

RECIPES = ((1, 12, 8), (2, 12, 8), (3, 8, 8), (4, 12, 16), (5, 16, 12))
"""Seed, epochs and channels of the models that must agree."""
TOLERANCE = 0.1
"""Allowed difference of a probability."""
SPREAD = 0.03
"""Largest difference of a probability between the models above: under a third of the tolerance, the rest is margin."""
BATCH_ROWS = 4


def main() -> None:
    """Chooses the images and writes one file for each case."""
    arguments = _arguments()
    make_deterministic()
    training, held_out = digits.read(arguments.data)
    answers = torch.stack([_answers(_train(training, recipe), held_out) for recipe in RECIPES])
    chosen = _choose(answers, held_out)
    arguments.out.mkdir(parents=True, exist_ok=True)
    mean = answers.mean(dim=0)
    cases = [
        *(_case(f"digit-{digit}", [index], held_out, mean) for digit, index in enumerate(chosen)),
        _case("batch", chosen[:BATCH_ROWS], held_out, mean),
        *_refusals(held_out.images[chosen[0]].tolist()),
    ]
    for case in cases:
        (arguments.out / f"{case['name']}.json").write_text(_render(case))
    worst = float((answers.amax(dim=0) - answers.amin(dim=0))[chosen].max())
    print(f"golden: {len(cases)} cases, rows {[held_out.rows[index] for index in chosen]}, spread {worst:.4f}")


def _train(part: digits.Part, recipe: tuple[int, int, int]) -> DigitClassifier:
    seed, epochs, channels = recipe
    return fit(part, seed=seed, epochs=epochs, channels=channels, hidden=64)


def _answers(model: DigitClassifier, part: digits.Part) -> torch.Tensor:
    with torch.inference_mode():
        return torch.softmax(model(part.images), dim=1)


def _choose(answers: torch.Tensor, part: digits.Part) -> list[int]:
    """Returns for each digit the held-out image on which the models agree best."""
    spread = (answers.amax(dim=0) - answers.amin(dim=0)).amax(dim=1)
    right = (answers.argmax(dim=2) == part.labels).all(dim=0)
    chosen = []
    for digit in range(CLASSES):
        candidates = spread.masked_fill(~(right & (part.labels == digit)), 1.0)
        best = int(candidates.argmin())
        if candidates[best] > SPREAD:
            sys.exit(f"golden: the models agree on no held-out image of a {digit}")
        chosen.append(best)
    return chosen


def _case(name: str, indices: list[int], part: digits.Part, mean: torch.Tensor) -> dict[str, Any]:
    values: list[dict[str, Any]] = []
    for position, index in enumerate(indices):
        label = int(part.labels[index])
        values.append({"path": f"$.classes[{position}]", "equals": label})
        for other in sorted({label, (label + 1) % CLASSES, int(mean[index].argsort()[-2])}):
            expected = round(float(mean[index][other]), 4)
            values.append({"path": f"$.outputs[{position}][{other}]", "equals": expected, "absolute": TOLERANCE})
    images = [[int(pixel) for pixel in part.images[index]] for index in indices]
    return {
        "name": name,
        "request": {"method": "POST", "path": "/v1/infer", "body": {"inputs": images}},
        "expect": {
            "status": 200,
            "values": values,
            "shape": [{"path": "$.outputs", "dims": [len(indices), CLASSES]}],
        },
    }


def _refusals(image: list[float]) -> list[dict[str, Any]]:
    pixels = [int(pixel) for pixel in image]
    bodies = {"refuses-short-image": {"inputs": [pixels[:-1]]}, "refuses-text": {"inputs": [["7", *pixels[1:]]]}}
    return [
        {
            "name": name,
            "request": {"method": "POST", "path": "/v1/infer", "body": body},
            "expect": {"status": 400},
        }
        for name, body in bodies.items()
    ]


def _render(case: dict[str, Any]) -> str:
    """Indents everything but the images: one line for each reads best."""
    images = case["request"]["body"]["inputs"]
    marked = json.loads(json.dumps(case))
    marked["request"]["body"]["inputs"] = [f"image {index}" for index in range(len(images))]
    text = json.dumps(marked, indent=2)
    for index, image in enumerate(images):
        text = text.replace(f'"image {index}"', json.dumps(image))
    return text + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m training.golden", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=Path("data/digits.csv.gz"), help="the data set")
    parser.add_argument("--out", type=Path, required=True, help="folder of the cases")
    return parser.parse_args()


if __name__ == "__main__":
    main()
