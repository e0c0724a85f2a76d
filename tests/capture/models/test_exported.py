"""Programs of torch.export: fed in the number they were exported for, and refused in words where they cannot be used."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch
from tests.support.models import nets
from torch import Tensor, nn
from torch.export import Dim, export, save, unflatten

from camserve.capture import load_exported, open_backend, open_model, synthesize_pictures
from camserve.core.config import Config
from camserve.core.errors import ConfigError

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
SIZE = (nets.SIDE, nets.SIDE)
PICTURES = synthesize_pictures(SIZE)


RESTORING = pytest.mark.skipif(
    not hasattr(import_module("torch.export.unflatten"), "InterpreterModuleDispatcher"), reason="this torch cannot restore them"
)
OLDER = pytest.mark.skipif(not hasattr(Dim, "AUTO"), reason="this torch has no automatic dimensions")


def exported(count: int, dimension: object = None, name: str = "deep") -> torch.export.ExportedProgram:
    """The net, exported with `count` pictures; `dimension` is that of the batch."""
    dynamic = ({0: dimension} if dimension else {},)
    return export(nets.net(name), (nets.pictures(count),), dynamic_shapes=dynamic)


@pytest.mark.parametrize(
    ("count", "dimension", "batch"),
    [
        (1, None, (1, 1)),
        (4, None, (4, 4)),
        (2, Dim("n"), (1, None)),
        pytest.param(2, getattr(Dim, "AUTO", None), (1, None), marks=OLDER),
        (2, Dim("n", max=4), (1, 4)),
        (4, Dim("n", min=3, max=5), (3, 5)),
    ],
    ids=["for 1", "for 4", "any", "automatic", "up to 4", "3 to 5"],
)
def test_fed_in_the_number_it_was_exported_for(count: int, dimension: object, batch: tuple[int, int | None]) -> None:
    """Seven pictures at once, and one: each gets the scores and gradients that the eager model gives it."""
    program = exported(count, dimension)
    assert open_model(program, PICTURES).batch == batch
    made = open_backend(program, Config(layers=("norm",)), SIZE, CPU)
    for pictures, rows in ((7, [6, 0, 3, 5]), (1, [0])):
        given = nets.pictures(pictures)
        targets = torch.arange(pictures) % nets.CLASSES
        captured = made.capture.forward(given, ["norm"])
        scores, activation, gradient = nets.by_autograd(nets.net("deep"), "norm", given, targets)
        assert torch.allclose(captured.logits, scores, atol=1e-6)
        assert torch.allclose(captured.activation("norm"), activation, atol=1e-5)
        found = captured.gradients("norm", torch.tensor(rows), targets[rows])
        assert torch.allclose(found, gradient[rows], atol=1e-7)


class Sizes(nn.Module):
    """An activation that takes another path for six channels: exported, it becomes two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.act = Act()
        self.head = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 5]`."""
        return self.head(self.act(self.second(self.act(self.first(x)))).mean((2, 3)))


class Act(nn.Module):
    """One or the other activation."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, twice."""
        return torch.relu(x) if x.shape[1] == 6 else torch.sigmoid(x)


@RESTORING
@pytest.mark.parametrize("preserve", [(), ("act",)], ids=["two modules", "one module that counts its calls"])
def test_a_module_with_two_graphs_is_taken_at_its_last_call(preserve: tuple[str, ...]) -> None:
    """Under its own name, whatever torch makes of it."""
    torch.manual_seed(0)
    model = Sizes().eval()
    program = export(model, (PICTURES,), dynamic_shapes=({0: Dim("n")},), preserve_module_call_signature=preserve)
    made = open_backend(program, Config(layers=("act",)), SIZE, CPU)
    targets = torch.tensor([1, 4])
    _, activation, gradient = nets.by_autograd(model, "act", PICTURES, targets)
    captured = made.capture.forward(PICTURES, ["act"])
    assert torch.allclose(captured.activation("act"), activation, atol=1e-6)
    assert torch.allclose(captured.gradients("act", torch.arange(2), targets), gradient, atol=1e-7)


@pytest.mark.parametrize("part", [nn.Dropout(0.5), nn.BatchNorm2d(6)], ids=["dropout", "batch normalisation"])
def test_a_program_exported_in_training_mode_is_refused(part: nn.Module) -> None:
    """Its scores change from pass to pass, or with the other pictures; nothing can switch that off any more."""
    model = nets.Rooted(nn.Conv2d(3, 6, 3, 4, 1), part, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).train()
    with pytest.raises(ConfigError, match=r"exported in training mode \(call model\.eval\(\) before torch\.export\.export\)"):
        open_model(export(model, (PICTURES,)), PICTURES)


class Without(nn.Module):
    """Runs its trunk, or all of it, without gradients."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), nn.Tanh())
        self.head = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5))
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 5]`."""
        with torch.no_grad():
            x = self.trunk(x)
            if self.whole:
                return self.head(x.mean((2, 3)))
        return self.head(x.mean((2, 3)))


@RESTORING
def test_a_program_exported_without_gradients_says_where_its_layers_went() -> None:
    """torch.export puts such a part into a graph of its own, without the names of the layers."""
    program = export(Without(whole=True).eval(), (PICTURES,))
    with pytest.raises(
        ConfigError, match=r"exported with torch\.no_grad\(\) in its forward, which drops the names of the layers"
    ):
        open_backend(program, Config(), SIZE, CPU)
    with pytest.raises(
        ConfigError, match=r"^layer trunk does not exist, or does not run: it was exported with torch\.no_grad\(\)"
    ):
        open_backend(program, Config(layers=("trunk",)), SIZE, CPU)


@RESTORING
def test_a_part_exported_without_gradients_is_explained_at_its_end() -> None:
    """Where the part gives a map: its graph is a module of its own."""
    torch.manual_seed(0)
    model = Without(whole=False).eval()
    made = open_backend(export(model, (PICTURES,)), Config(), SIZE, CPU)
    targets = torch.tensor([1, 4])
    activation = model.trunk(PICTURES).detach().requires_grad_()
    scores = model.head(activation.mean((2, 3)))
    (gradient,) = torch.autograd.grad(scores[[0, 1], targets].sum(), activation)
    captured = made.capture.forward(PICTURES, made.layers)
    assert torch.allclose(captured.activation(made.layers[0]), activation, atol=1e-6)
    assert torch.allclose(captured.gradients(made.layers[0], torch.arange(2), targets), gradient, atol=1e-7)


def test_a_file_is_loaded_with_its_submodules(tmp_path: Path) -> None:
    """What `torch.export.save` wrote becomes a module that the rest of the server can move, freeze and call."""
    save(exported(2, Dim("n")), tmp_path / "model.pt2")
    module = load_exported(tmp_path / "model.pt2", "cpu")
    assert module.to(CPU).eval() is module
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert {"conv", "norm", "head.0"} <= {name for name, _ in module.named_modules()}
    made = open_backend(module, Config(), SIZE, CPU)
    assert (made.kind, made.layers) == ("exported", ("relu",))


def test_another_file_is_refused(tmp_path: Path) -> None:
    """The message names the file without its folder, and how to write one that is accepted."""
    torch.save({"a": torch.ones(1)}, tmp_path / "weights.pt2")
    for name in ("weights.pt2", "missing.pt2"):
        with pytest.raises(ConfigError, match=rf"^{name} is no program of torch\.export .*write it with torch\.export\.save"):
            load_exported(tmp_path / name)


def test_pictures_of_another_size_are_named() -> None:
    """A program for 32x32 pixels and a preprocessing that gives 40x40: both are in the message."""
    with pytest.raises(ConfigError, match=r"does not run on pictures of shape \[2, 3, 40, 40\]: .*32.*40"):
        open_backend(exported(2), Config(), (40, 40), CPU)


def test_the_programs_own_module_is_refused_in_words() -> None:
    """`program.module()` has no submodules: hooks on it would never fire."""
    with pytest.raises(ConfigError, match=r"take the exported program itself, not its module\(\)"):
        open_model(exported(2).module(), PICTURES)


def test_a_restored_module_is_taken_as_it_is() -> None:
    """`torch.export.unflatten` of the user's own."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = unflatten(exported(2))
    assert open_backend(module, Config(), SIZE, CPU).layers == ("relu",)


def test_a_program_whose_submodules_torch_cannot_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says so, names torch's version, and offers what works. (So fail some programs with torch 2.4.)"""

    def fails(_program: object) -> nn.Module:
        raise KeyError("conv2d_1")

    monkeypatch.setattr("camserve.capture.models.programs.exported.unflatten", fails)
    with pytest.raises(ConfigError, match=r"^torch \S+ cannot restore this program's submodules \(KeyError\); a newer torch may"):
        open_model(exported(2), PICTURES)
