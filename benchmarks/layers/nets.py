"""One small network of each family: how they are built decides what goes past their layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import SwinTransformer

from benchmarks.layers.scenes import CLASSES

WIDTH = 32
CELLS = 8
"""Rows, and columns, of tokens."""
HEADS = 4
DEPTH = 3


def _conv(inside: int, outside: int, stride: int = 1, side: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, side, stride, side // 2, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
    )


def _stem() -> nn.Sequential:
    """`[N, 3, 32, 32]` to `[N, 32, 8, 8]`."""
    return nn.Sequential(_conv(3, 16, 2), _conv(16, 32, 2))


class Plain(nn.Module):
    """Convolutions, pooling and one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _stem()
        self.trunk = nn.Sequential(_conv(32, 64), _conv(64, 64), _conv(64, 64))
        self.fc = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk(self.stem(x)).mean((2, 3)))


class Gated(Plain):
    """The same with a gate of one channel over the last map (CBAM)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Conv2d(2, 1, 5, padding=2), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(self.stem(x))
        gate = self.gate(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1))
        return self.fc((x * gate).mean((2, 3)))


class Branched(nn.Module):
    """Two steps of three branches each, concatenated by a function (BN-Inception)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _stem()
        self.first_one, self.first_three, self.first_five = _conv(32, 16, side=1), _conv(32, 32), _conv(32, 16, side=5)
        self.second_one, self.second_three, self.second_five = _conv(64, 16, side=1), _conv(64, 32), _conv(64, 16, side=5)
        self.fc = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([self.first_one(x), self.first_three(x), self.first_five(x)], 1)
        x = torch.cat([self.second_one(x), self.second_three(x), self.second_five(x)], 1)
        return self.fc(x.mean((2, 3)))


class Attention(nn.Module):
    """Attention with one projection to queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(_attend(*self.qkv(x).chunk(3, -1)))


class SeparateAttention(nn.Module):
    """Attention with three projections."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(_attend(self.query(x), self.key(x), self.value(x)))


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    count, tokens, width = query.shape
    query, key, value = (each.reshape(count, tokens, HEADS, width // HEADS).transpose(1, 2) for each in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(count, tokens, width)


def _mlp(width: int = WIDTH, inner: int = 2 * WIDTH) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))


class Block(nn.Module):
    """A transformer's block, with both residuals inside."""

    def __init__(self, attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = nn.LayerNorm(WIDTH), attention(), nn.LayerNorm(WIDTH), _mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A vision transformer of blocks; its class token is read, or the mean of its other tokens, registers left out."""

    def __init__(
        self, attention: Callable[[], nn.Module] = Attention, *, token: bool = True, registers: int = 0, depth: int = DEPTH
    ) -> None:
        super().__init__()
        self.patch: nn.Module = nn.Sequential(_conv(3, 16, 2), _conv(16, 24), nn.Conv2d(24, WIDTH, 2, 2))
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH)) if token else None
        self.registers = nn.Parameter(0.02 * torch.randn(1, registers, WIDTH))
        self.position = nn.Parameter(0.02 * torch.randn(1, CELLS**2 + token, WIDTH))
        self.blocks = nn.ModuleList(Block(attention) for _ in range(depth))
        self.norm = nn.LayerNorm(WIDTH)
        self.fc = nn.Linear(WIDTH, CLASSES)

    def embed(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x if self.token is None else torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return torch.cat([x + self.position, self.registers.expand(len(x), -1, -1)], 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.read(x)

    def read(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.fc(x[:, : CELLS**2].mean(1) if self.token is None else x[:, 0])


class Residual(nn.Module):
    """A ResNet's block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _conv(width, width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.bn2(self.conv2(self.conv1(x))))


class Hybrid(Transformer):
    """A ResNet's trunk below a transformer with a class token."""

    def __init__(self) -> None:
        super().__init__(depth=2)
        self.patch = nn.Sequential(_stem(), Residual(32), Residual(32), nn.Conv2d(32, WIDTH, 1))


class Streamed(Transformer):
    """The same with its residuals outside of modules, so that no module gives the sum (vit_pytorch)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.layers = nn.ModuleList(
            nn.ModuleList([nn.Sequential(nn.LayerNorm(WIDTH), Attention()), nn.Sequential(nn.LayerNorm(WIDTH), _mlp())])
            for _ in range(DEPTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for pair in self.layers:
            attend, feed = pair  # type: ignore[misc]
            x = attend(x) + x  # type: ignore[has-type]
            x = feed(x) + x  # type: ignore[has-type]
        return self.read(x)


class AttentionPooled(nn.Module):
    """Tokens of a convolutional trunk and two blocks, pooled by learnt weights (CCT, attention-MIL)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _stem()
        self.widen = nn.Conv2d(32, WIDTH, 1)
        self.blocks = nn.ModuleList(Block(Attention) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.weigh = nn.Linear(WIDTH, 1)
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.widen(self.stem(x)).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.fc((self.weigh(x).softmax(1) * x).sum(1))


class MixerBlock(nn.Module):
    """A mixer's block: over the tokens, then over the channels."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.norm1, self.tokens = nn.LayerNorm(WIDTH), _mlp(cells, cells)
        self.norm2, self.channels = nn.LayerNorm(WIDTH), _mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """An MLP-Mixer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Sequential(_conv(3, 16, 2), _conv(16, 24), nn.Conv2d(24, WIDTH, 2, 2))
        self.blocks = nn.ModuleList(MixerBlock(CELLS**2) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.fc(self.norm(x).mean(1))


def _swin() -> nn.Module:
    """Make a Swin whose linear layers start as those of the other networks: torchvision's start is for much wider ones."""
    swin = SwinTransformer([2, 2], 24, [2, 2], [2, 4], [4, 4], num_classes=CLASSES, stochastic_depth_prob=0.0)
    for part in swin.modules():
        if isinstance(part, nn.Linear):
            part.reset_parameters()
    swin.features[0][0] = nn.Sequential(_conv(3, 16, 2), nn.Conv2d(16, 24, 3, padding=1))
    return swin


FAMILIES: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "CNN": Plain,
        "CNN with a gate": Gated,
        "CNN of branches": Branched,
        "ViT, class token": Transformer,
        "ViT, separate projections": lambda: Transformer(SeparateAttention),
        "ViT, residuals outside of modules": Streamed,
        "ViT, class token and registers": lambda: Transformer(registers=4),
        "ViT, mean of tokens": lambda: Transformer(token=False),
        "ViT, mean of tokens beside registers": lambda: Transformer(SeparateAttention, token=False, registers=4),
        "ResNet below a ViT": Hybrid,
        "Swin": _swin,
        "attention pooling": AttentionPooled,
        "mixer": Mixer,
    }
)
"""Each family's network, untrained."""
