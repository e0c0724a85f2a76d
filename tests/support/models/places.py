"""Networks whose cells lie elsewhere than one would think: other tokens, other orders, and pictures turned or cut inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tests.support.models.nets import CLASSES, Attention
from torch import Tensor, nn

PATCH = 8

Change = Callable[[Tensor], Tensor]

ORDERS: dict[str, Change] = {
    "rows": lambda x: x,
    "columns": lambda x: x.transpose(2, 3),
    "mirrored": lambda x: x.flip(3),
    "reversed": lambda x: x.flip(2, 3),
    "shuffled": lambda x: x.flatten(2)[:, :, torch.randperm(x[0, 0].numel(), generator=torch.Generator().manual_seed(1))],
    "windows": lambda x: x.reshape(*x.shape[:2], x.shape[2] // 2, 2, -1, 2).transpose(3, 4),
}
"""How the patches' map `[N, C, h, w]` is turned before it is flattened to tokens."""


class Ordered(nn.Module):
    """A vision transformer whose tokens lie in some order, with others before, behind or in the middle."""

    def __init__(self, order: str = "rows", before: int = 0, behind: int = 0, middle: int = 0, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.order = order
        self.sides = before, behind, middle
        self.patch = nn.Conv2d(3, width, PATCH, PATCH)
        self.others = nn.Parameter(torch.randn(1, before + behind + middle, width))
        self.blocks = nn.ModuleList(Attention(width) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, CLASSES)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`: the mean over the patches."""
        x = ORDERS[self.order](self.patch(x)).flatten(2).transpose(1, 2)
        before, behind, middle = self.sides
        first, last, between = self.others.expand(len(x), -1, -1).split([before, behind, middle], 1)
        half = x.shape[1] // 2
        x = torch.cat([first, x[:, :half], between, x[:, half:], last], 1)
        for block in self.blocks:
            x = block(x)
        return self.fc(self.norm(x)[:, before : x.shape[1] - behind].mean(1))


class Viewing(nn.Module):
    """The mean of a model's scores for several views of the picture."""

    def __init__(self, model: nn.Module, views: Sequence[Change]) -> None:
        super().__init__()
        self.model = model
        self.views = views

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return torch.stack([self.model(view(x)) for view in self.views]).mean(0)


class Plain(nn.Module):
    """Convolutions with a ReLU, pooling and a linear layer: its map has a quarter of the picture's side."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(16, CLASSES)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return self.fc(self.body(self.stem(x)).mean((2, 3)))
