"""Small classifiers with random weights, one for each way in which a network can be built, and how archives hold them."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

torch.set_num_threads(1)  # what is computed here is too small for more, and waits for busy cores

CLASSES = 5
SIDE = 32


class Pooled(nn.Module):
    """Convolutions, global average pooling and one linear layer."""

    def __init__(self, bias: bool = True, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.features = nn.Sequential(nn.Conv2d(6, channels, 3, 2, 1), nn.ReLU(inplace=True))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, CLASSES, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return self.fc(self.pool(self.features(self.stem(x))).flatten(1))


class Deep(nn.Module):
    """A head of two linear layers with a ReLU, behind a layer whose ReLU works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2, 1)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return self.head(self.relu(self.norm(self.conv(x))).mean((2, 3)))


class Twice(nn.Module):
    """One activation module that runs twice, and a second output."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, 2, 1)
        self.second = nn.Conv2d(6, 6, 3, 2, 1)
        self.act = nn.ReLU(inplace=True)
        self.squeeze = nn.Conv2d(6, 7, 1)
        self.fc = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, 3, H, W]` to `[N, CLASSES]`, and an auxiliary output."""
        x = self.act(self.second(self.act(self.first(x))))
        hidden = torch.tanh(self.squeeze(x)).mean((2, 3))
        return self.fc(hidden), hidden


class Functional(nn.Module):
    """A head of functions over a parameter, and an in-place function right behind the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6))
        self.matrix = nn.Parameter(torch.randn(CLASSES, 6 * 4))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        x = functional.relu(self.body(x), inplace=True)
        x = functional.adaptive_max_pool2d(x, (2, 2)).reshape(-1, 6 * 4)
        return functional.log_softmax(functional.linear(x, self.matrix), 1)


class Block(nn.Module):
    """Normalisation, attention over the tokens, and a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, T, C]`, twice."""
        query, key, value = self.mix(self.norm(x)).chunk(3, -1)
        return x + functional.softmax(query @ key.transpose(1, 2), -1) @ value


class Tokens(nn.Module):
    """A small vision transformer: a class token, which alone is read."""

    def __init__(self, width: int = 8, blocks: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.fc(self.norm(x)[:, 0])


class Attention(nn.Module):
    """Normalisation, attention of two heads with its softmax as a module, and a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.attend = nn.Softmax(dim=-1)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, T, C]`, twice."""
        count, tokens, width = x.shape
        heads = self.to_qkv(self.norm(x)).reshape(count, tokens, 3, 2, width // 2)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = self.attend(query @ key.transpose(2, 3)) @ value
        return x + self.to_out(mixed.transpose(1, 2).reshape(count, tokens, width))


class Attending(nn.Module):
    """A vision transformer without a convolution: patches are cut out, a class token alone is read."""

    def __init__(self, width: int = 8, blocks: int = 2, side: int = 8) -> None:
        super().__init__()
        self.side = side
        self.embed = nn.Linear(3 * side * side, width)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.layers = nn.ModuleList(Attention(width) for _ in range(blocks))
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        count, side = x.shape[0], self.side
        rows, columns = x.shape[2] // side, x.shape[3] // side
        x = x.reshape(count, 3, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
        x = self.embed(x.reshape(count, rows * columns, 3 * side * side))
        x = torch.cat([self.token.expand(count, -1, -1), x], 1)
        for layer in self.layers:
            x = layer(x)
        return self.fc(x[:, 0])


class Last(nn.Module):
    """Channels last: a normalisation over `[N, h, w, C]`, a permutation, pooling, and one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.norm = nn.LayerNorm(12)
        self.permute = Permute()
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        x = self.permute(self.norm(self.patch(x).permute(0, 2, 3, 1)))
        return self.fc(x.mean((2, 3)))


class Permute(nn.Module):
    """A module that only passes on."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, h, w, C]` to `[N, C, h, w]`."""
        return x.permute(0, 3, 1, 2)


class Sequence(nn.Module):
    """Tokens first: `[T, N, C]`."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 8, 8)
        self.mix = nn.Sequential(nn.Linear(8, 8), nn.GELU())
        self.head = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, CLASSES]`."""
        return self.head(self.mix(self.patch(x).flatten(2).permute(2, 0, 1)).mean(0))


class Rooted(nn.Module):
    """A sequence inside a module: torch 2.4 cannot restore a program of a bare sequence."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """Whatever the last part gives."""
        return self.body(x)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "pooled": (Pooled, ("features", "stem")),
    "deep": (Deep, ("norm", "relu", "conv")),
    "twice": (Twice, ("act", "squeeze")),
    "functional": (Functional, ("body", "body.0")),
    "tokens": (Tokens, ("blocks.0", "blocks.1.norm")),
    "attending": (Attending, ("layers.0", "layers.1.norm")),
    "last": (Last, ("norm", "patch")),
    "sequence": (Sequence, ("mix", "mix.0")),
}
"""Each with the layers to look at."""

KINDS = ("eager", "script", "trace", "frozen", "exported", "exported for 3")
"""How archives hold models: a new kind is a name here and a branch in `as_file`, and the tests of captures run on it."""


@functools.cache
def net(name: str) -> nn.Module:
    """One of the nets, in eval mode, with random weights and statistics."""
    torch.manual_seed(0)
    module = NETS[name][0]()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = torch.randn(part.num_features)
            part.running_var = 0.5 + torch.rand(part.num_features)
    return module.eval()


@functools.cache
def loaded(name: str, kind: str) -> object:
    """The net as an archive holds it: saved and loaded again."""
    return stored(net(name), kind, pictures(3))


def stored(module: nn.Module, kind: str, example: Tensor) -> object:
    """A module, saved as `kind` and loaded again."""
    if kind == "eager":
        return module
    file = io.BytesIO(as_file(module, kind, example))
    return torch.export.load(file) if kind.startswith("exported") else torch.jit.load(file)


def as_file(module: nn.Module, kind: str, example: Tensor) -> bytes:
    """The file of a module, saved as `kind`, which is not eager."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and says so
        if kind.startswith("exported"):
            batch = {0: torch.export.Dim("batch")} if kind == "exported" else {}
            torch.export.save(torch.export.export(module, (example,), dynamic_shapes=(batch,)), buffer)
        else:
            made = torch.jit.trace(module, example) if kind == "trace" else torch.jit.script(module)
            torch.jit.save(torch.jit.freeze(made) if kind == "frozen" else made, buffer)
    return buffer.getvalue()


def pictures(count: int = 3, seed: int = 0, side: int = SIDE) -> Tensor:
    """Random pictures `[count, 3, side, side]`."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def by_autograd(module: nn.Module, layer: str, batch: Tensor, targets: Tensor, call: int = -1) -> tuple[Tensor, Tensor, Tensor]:
    """What the capture must give, by autograd through the whole module: scores, output and gradient of the layer, as they are.

    `call` counts the calls of the layer's module.
    """
    seen: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> Tensor:
        first = output if isinstance(output, Tensor) else output[0]
        first.retain_grad()
        seen.append(first)
        return first * 1  # whatever works in place behind the layer works on this

    handle = module.get_submodule(layer).register_forward_hook(hook)
    try:
        with torch.enable_grad():
            answer = module(batch.clone().requires_grad_())
    finally:
        handle.remove()
    scores = answer if isinstance(answer, Tensor) else answer[0]
    scores[torch.arange(len(batch)), targets].sum().backward()
    gradient = seen[call].grad
    for parameter in module.parameters():
        parameter.grad = None
    return scores.detach(), seen[call].detach(), torch.zeros_like(seen[call]) if gradient is None else gradient
