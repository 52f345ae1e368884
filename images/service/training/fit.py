"""Fits the digit classifier: seeded, one thread, CPU, so that one machine and PyTorch version give the same bytes.

Another CPU or PyTorch version may round differently; the golden cases' tolerances cover that.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch.nn import functional

from greenlight_service.model import DigitClassifier, save
from training import digits

BATCH = 64
LEARNING_RATE = 2e-3


def fit(part: digits.Part, *, seed: int, epochs: int, channels: int, hidden: int) -> DigitClassifier:
    """Returns the trained model, in evaluation mode."""
    torch.manual_seed(seed)
    model = DigitClassifier(channels=channels, hidden=hidden)
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    batches = -(-len(part.rows) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=epochs * batches)
    model.train()
    for _ in range(epochs):
        for indices in torch.randperm(len(part.rows), generator=order).split(BATCH):
            optimiser.zero_grad()
            functional.cross_entropy(model(part.images[indices]), part.labels[indices]).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def accuracy(model: DigitClassifier, part: digits.Part) -> float:
    """Returns the share of the images whose digit the model finds, from 0 to 1."""
    with torch.inference_mode():
        right = (model(part.images).argmax(dim=1) == part.labels).sum()
    return float(right) / len(part.rows)


def main() -> None:
    """Trains, checks the accuracy on the held-out images, and writes the model's folder."""
    arguments = _arguments()
    make_deterministic()
    training, held_out = digits.read(arguments.data)
    model = fit(
        training,
        seed=arguments.seed,
        epochs=arguments.epochs,
        channels=arguments.channels,
        hidden=arguments.hidden,
    )
    found = accuracy(model, held_out)
    if found < arguments.min_accuracy:
        sys.exit(
            f"training: accuracy {found:.4f} on {len(held_out.rows)} held-out images is below {arguments.min_accuracy}"
        )
    facts = {
        "accuracy": round(found, 4),
        "dataSha256": digits.SHA256,
        "epochs": arguments.epochs,
        "seed": arguments.seed,
        "torch": torch.__version__,
    }
    checksum = save(model, arguments.out, facts)
    print(f"training: accuracy {found:.4f} on {len(held_out.rows)} held-out images, weights SHA-256 {checksum}")


def make_deterministic() -> None:
    """Makes every later operation repeatable; anything that cannot be raises."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m training.fit", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/digits.csv.gz"), help="the data set")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights.safetensors and model.json")
    parser.add_argument("--seed", type=int, default=1, help="another seed gives other weights (default 1)")
    parser.add_argument("--epochs", type=int, default=12, help="passes over the data (default 12)")
    parser.add_argument("--channels", type=int, default=8, help="channels of the first convolution (default 8)")
    parser.add_argument("--hidden", type=int, default=64, help="width of the hidden dense layer (default 64)")
    parser.add_argument("--min-accuracy", type=float, default=0.95, help="fail below this (default 0.95)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
