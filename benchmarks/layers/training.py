"""Trains a family's network, the same each time on one processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.layers import scenes

PICTURES = 8192
"""How many are trained on."""

BATCH = 64
RATE = 3e-3


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
        model: in evaluation mode.
        accuracy: on pictures that it has not seen.
    """

    model: nn.Module
    accuracy: float


def train(make: Callable[[], nn.Module], epochs: int, seed: int = 0) -> Trained:
    """Train a network on `PICTURES` pictures in so many epochs."""
    torch.manual_seed(seed)
    model, drawn = make(), scenes.draw(PICTURES, seed=1)
    steps = epochs * (PICTURES // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.15)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        for places in torch.randperm(PICTURES, generator=generator).split(BATCH):
            optimizer.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(model(_flip(drawn.pictures[places], generator)), drawn.classes[places])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return Trained(model.eval(), accuracy(model, scenes.draw(512, seed=2)))


def load_or_train(make: Callable[[], nn.Module], epochs: int, seed: int, file: Path | None) -> Trained:
    """Load a network from a file, where that is given and there; else train it, and keep it there."""
    if file is None or not file.is_file():
        trained = train(make, epochs, seed)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save((trained.model.state_dict(), trained.accuracy), file)
        return trained
    model = make()
    weights, reached = torch.load(file, weights_only=True)
    model.load_state_dict(weights)
    return Trained(model.eval(), reached)


def _flip(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the batches: no class depends on the side."""
    return pictures.flip(3) if torch.rand(1, generator=generator) < 0.5 else pictures


def accuracy(model: nn.Module, drawn: scenes.Scenes) -> float:
    with torch.no_grad():
        return float((model(drawn.pictures).argmax(1) == drawn.classes).float().mean())
