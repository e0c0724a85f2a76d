"""Classifiers with heads that no library has: paths side by side, hypercolumns, several scales, attention, moments, pyramids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 6
SIDE = 64


def _conv(inside: int, outside: int, stride: int = 2, side: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, side, stride, side // 2), nn.BatchNorm2d(outside), nn.ReLU())


def _trunk(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(_conv(*each) for each in zip((3, *widths), widths, strict=False)))


class DualPath(nn.Module):
    """A fine and a coarse path, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fine = _conv(3, 16), nn.Sequential(_conv(16, 32), _conv(32, 32))
        self.coarse = nn.Sequential(_conv(16, 32, 4, 5), _conv(32, 32, 2, 5))
        self.fc = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`, as of all nets here."""
        x = self.stem(x)
        fine = self.fine(x)
        coarse = functional.interpolate(self.coarse(x), size=fine.shape[2:])
        return self.fc(torch.cat([fine, coarse], 1).mean((2, 3)))


class Hypercolumns(nn.Module):
    """Three scales, enlarged and mixed; the largest value of each channel counts."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ModuleList([_conv(3, 16), _conv(16, 24), _conv(24, 32)])
        self.mix, self.fc = nn.Conv2d(72, 40, 1), nn.Linear(40, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """All scales at the first one's size."""
        found = []
        for scale in self.scales:
            x = scale(x)
            found.append(x)
        large = [functional.interpolate(each, size=found[0].shape[2:], mode="bilinear") for each in found]
        return self.fc(functional.relu(self.mix(torch.cat(large, 1))).amax((2, 3)))


class TwoScales(nn.Module):
    """A head at each of two depths, added up."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = _trunk(16, 24), _conv(24, 32)
        self.first, self.second = nn.Linear(24, CLASSES), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Both heads' scores."""
        early = self.early(x)
        return self.first(early.mean((2, 3))) + self.second(self.late(early).mean((2, 3)))


class Attending(nn.Module):
    """Two layers, each pooled by how well its cells go with the picture as a whole (Jetley et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = _conv(3, 24, 4), _conv(24, 24), _conv(24, 24)
        self.weigh = nn.ModuleList(nn.Conv2d(24, 1, 1) for _ in range(2))
        self.fc = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Weights add up to 1 over the cells."""
        maps = [self.first(x)]
        maps.append(self.second(maps[0]))
        whole = self.third(maps[1]).mean((2, 3), keepdim=True)
        weights = [
            weigh(each + whole).flatten(2).softmax(2).view(len(x), 1, *each.shape[2:])
            for weigh, each in zip(self.weigh, maps, strict=True)
        ]
        return self.fc(torch.cat([(weight * each).sum((2, 3)) for weight, each in zip(weights, maps, strict=True)], 1))


class Bilinear(nn.Module):
    """Products of all pairs of channels, their roots, of length 1 (Lin et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.fc = _trunk(16, 16, 12), nn.Linear(144, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Averaged over the cells."""
        cells = self.trunk(x).flatten(2)
        products = (cells @ cells.transpose(1, 2) / cells.shape[2]).flatten(1)
        return self.fc(functional.normalize(products.sign() * (products.abs() + 1e-5).sqrt()))


class Residues(nn.Module):
    """Cells assigned to centres, and what is left of them (NetVLAD)."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.assign = _trunk(16, 24, 24), nn.Conv2d(24, 4, 1)
        self.centres, self.fc = nn.Parameter(torch.randn(4, 24)), nn.Linear(96, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Each centre's residue has length 1."""
        x = self.trunk(x)
        shares = self.assign(x).softmax(1).flatten(2)
        left = shares @ x.flatten(2).transpose(1, 2) - shares.sum(2, keepdim=True) * self.centres
        return self.fc(functional.normalize(left, dim=2).flatten(1))


class Gates(nn.Module):
    """Gates over channels and cells, a generalised mean, and a head with a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = _trunk(16, 32, 32)
        self.channels = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 32), nn.Sigmoid())
        self.cells = nn.Conv2d(32, 1, 7, padding=3)
        self.head = nn.Sequential(nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """The mean is of third powers."""
        x = self.trunk(x)
        x = x * self.channels(x.mean((2, 3)))[:, :, None, None] * self.cells(x).sigmoid()
        return self.head((x.clamp(min=1e-6) ** 3).mean((2, 3)) ** (1 / 3))


class Queries(nn.Module):
    """Learnt queries that attend to the tokens of an encoder (Perceiver)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.places = nn.Conv2d(3, 32, 8, 8), nn.Parameter(0.3 * torch.randn(1, (SIDE // 8) ** 2, 32))
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.queries, self.attend = nn.Parameter(torch.randn(1, 3, 32)), nn.MultiheadAttention(32, 4, batch_first=True)
        self.fc = nn.Linear(96, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """All queries' answers count."""
        tokens = self.encoder(self.patches(x).flatten(2).transpose(1, 2) + self.places)
        return self.fc(self.attend(self.queries.expand(len(x), -1, -1), tokens, tokens)[0].flatten(1))


class Pyramid(nn.Module):
    """The largest values of the whole, of quarters and of sixteenths."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.fc = _trunk(16, 24, 24), nn.Linear(24 * 21, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Flattened."""
        x = self.trunk(x)
        return self.fc(torch.cat([functional.adaptive_max_pool2d(x, each).flatten(1) for each in (1, 2, 4)], 1))


ODD: Mapping[str, tuple[Callable[[], nn.Module], str]] = MappingProxyType(
    {
        "dual path": (DualPath, "fine + coarse"),
        "hypercolumns": (Hypercolumns, "mix"),
        "two scales": (TwoScales, "early"),
        "attention over layers": (Attending, "first"),
        "bilinear": (Bilinear, "trunk"),
        "residues": (Residues, "trunk"),
        "gates": (Gates, "trunk"),
        "queries": (Queries, "encoder"),
        "pyramid": (Pyramid, "trunk"),
    }
)
"""Each net, and the last of its layers, or of those side by side, that nothing bypasses."""


def lively(make: Callable[[], nn.Module]) -> nn.Module:
    """A net in evaluation mode whose norms have seen pictures."""
    torch.manual_seed(1)
    net = make().train()
    with torch.no_grad():
        for _ in range(8):
            net(pictures())
    return net.eval()


def pictures(count: int = 3) -> Tensor:
    """Blotches with noise, `[count, 3, SIDE, SIDE]`."""
    generator = torch.Generator().manual_seed(2)
    blotches = torch.randn(count, 3, 9, 9, generator=generator)
    noise = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    return functional.interpolate(blotches, size=SIDE, mode="bicubic") + 0.3 * noise
