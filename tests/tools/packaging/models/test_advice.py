"""What packaging says of a model: how its pictures are prepared, what its output is, and why it does not take the pictures."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from rich.console import Console
from safetensors.torch import save_file
from tests.support.processes.waiting import HANG
from torch import Tensor, nn

from camserve.capture import synthesize_pictures
from camserve.capture.backend import open_backend
from camserve.core.config import Config
from camserve.core.errors import ConfigError
from camserve.tools.archive.archive import open_archive
from camserve.tools.commands import inspect_model, package
from camserve.tools.console import Progress, ToolError
from camserve.tools.packaging import packager
from camserve.tools.packaging.adoption.their_handler import AdoptedHandler
from camserve.tools.packaging.contents.names import WEIGHTS
from camserve.tools.packaging.flags.model import ModelFlags
from camserve.tools.packaging.models import advice
from camserve.tools.packaging.models.files import load_program

CPU = torch.device("cpu")
SIZE = (32, 32)

NET = """
import torch
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(CHANNELS, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4))
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        return STEP(self.fc(self.features(x).POOLED))
"""


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried is tried to its end, however slow the machine is."""
    monkeypatch.setattr(advice, "PATIENCE", HANG)


def written(folder: Path, *, channels: int = 3, classes: int = 5, step: str = "", flat: bool = False) -> list[str]:
    """`net.py` and `net.pth`; the flags that package them. A `flat` one takes pictures of 32 x 32 alone."""
    text = NET.replace("CHANNELS", str(channels)).replace("CLASSES", str(classes)).replace("STEP", step)
    text = text.replace("WIDTH", "512" if flat else "8").replace("POOLED", "flatten(1)" if flat else "mean((2, 3))")
    (folder / "net.py").write_text(text)
    shutil.rmtree(
        folder / "__pycache__", ignore_errors=True
    )  # a file of the same second and length would pass for the one before
    torch.save(net(folder).state_dict(), folder / "net.pth")
    return ["--model-file", str(folder / "net.py"), "--weights", str(folder / "net.pth"), "--export-path", str(folder)]


def net(folder: Path) -> nn.Module:
    """The model of that file."""
    sys.path.insert(0, str(folder))
    sys.modules.pop("net", None)
    importlib.invalidate_caches()
    try:
        torch.manual_seed(0)
        made: nn.Module = importlib.import_module("net").Net().eval()
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("net", None)
    return made


def warned(model: nn.Module, size: tuple[int, int] = SIZE) -> list[str]:
    """What is said of a model's output."""
    return list(open_backend(model, Config(channels_last=False), size, CPU).notes)


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive that was built is not asked for an explanation: other tests do."""
    monkeypatch.setattr(packager, "try_archive", lambda *_: {"explanations": [{"warnings": []}]})
    monkeypatch.setattr(packager, "find_needed_modules", lambda *_, **__: {})


def said(arguments: list[str]) -> str:
    """What packaging prints."""
    console = Console(record=True, file=open("/dev/null", "w"), width=400)  # noqa: PTH123, SIM115
    with console.file:
        packager.package(package.parse(arguments), Progress(console))
        return console.export_text()


@pytest.mark.usefixtures("unasked")
def test_what_was_decided_and_what_is_odd_is_printed(tmp_path: Path) -> None:
    """How pictures are prepared and why, and each warning, in a line of its own."""
    (tmp_path / "own.yaml").write_text("explain: {interpolation: bicubic}\n")
    own = ["--crop", "32", "--config", str(tmp_path / "own.yaml")]
    lines = said([*written(tmp_path, step="torch.sigmoid"), *own]).splitlines()
    assert (
        "Pictures: shorter side to 256 (defaults); centre 32x32, bicubic (as asked); "
        "mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (defaults)"
    ) in lines
    (crop,) = [line for line in lines if line.startswith("Warning: ")]
    assert "the crop keeps 32x32 of pictures of 256x256, 1/64 of what is there; --resize 32 shows" in crop
    assert any(line.startswith("A trial shows that the model ends in a sigmoid: probabilities are as it gives") for line in lines)


@pytest.mark.parametrize(
    ("keys", "origins", "line"),
    [
        (
            {},
            {},
            "shorter side to 256, centre 224x224, bilinear, mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (defaults)",
        ),
        (
            {"resize": [40, 60], "crop": None, "mean": [127 / 255] * 3, "std": [1, 1, 1]},
            {"the model's own": ("resize", "crop", "mean"), "as asked": ("mean", "std")},
            "resized to 40x60, no crop (the model's own); bilinear (defaults); mean 0.498 0.498 0.498, std 1 1 1 (as asked)",
        ),
        (
            {"resize": None, "crop": [32, 48]},
            {},
            "as large as they come, centre 32x48, bilinear, mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (defaults)",
        ),
    ],
)
def test_each_step_is_told_with_where_it_comes_from(keys: dict[str, Any], origins: dict[str, Any], line: str) -> None:
    """The last to have a key decides, and what nothing is wrong with brings no warning."""
    assert advice.describe_preparation(Config.from_mapping(keys), origins, AdoptedHandler()) == [f"Pictures: {line}"]


@pytest.mark.parametrize(
    ("keys", "warning"),
    [
        ({"crop": 127}, "keeps 127x127 of pictures of 256x256, 1/4 of what is there; --resize 127 shows the model all of it"),
        ({"crop": 128}, ""),
        ({"resize": [100, 300], "crop": [90, 100]}, "1/3 of what is there; --resize 90 100 shows"),
        ({"resize": 32}, "the crop of 224x224 is larger than pictures of 32x32, around which it puts black; --resize 224 or --crop 32"),
        ({"std": [128, 128, 128]}, "std 128 128 128 divides values from 0 to 1; if it is meant for 0 to 255, divide it by 255"),
        ({"mean": [1, 1, 1], "std": [1, 1, 1]}, ""),
    ],
)  # fmt: skip
def test_preparation_that_is_hardly_meant_is_told(keys: dict[str, Any], warning: str) -> None:
    """With the flag that mends it."""
    found = advice.describe_preparation(Config.from_mapping(keys), {}, AdoptedHandler())[1:]
    assert len(found) == bool(warning)
    assert all(warning in each for each in found)


def test_a_handlers_own_way_is_told_instead() -> None:
    """The configuration's keys have no say then."""
    own = AdoptedHandler(title="h.py's class H", prepares="image_processing", size=(28, 30))
    assert advice.describe_preparation(Config(crop=32), {}, own) == [
        "Pictures: as image_processing of h.py's class H makes them, 28x30"
    ]


@pytest.mark.parametrize(
    ("step", "classes", "warning"),
    [
        ("torch.nn.Softmax(1)", 5, "ends in a softmax: probabilities are as it gives them"),
        ("torch.sigmoid", 5, "ends in a sigmoid: probabilities are as it gives them"),
        ("torch.sigmoid", 1, "one output, so there are two classes"),
        ("", 1, "one output, so there are two classes"),
        ("torch.nn.LogSoftmax(1)", 5, "ends in a log-softmax: probabilities are its softmax, and explained is log p"),
        ("torch.zeros_like", 5, ""),
        ("", 5, ""),
    ],
)
def test_a_model_that_does_not_end_in_logits_is_told(tmp_path: Path, step: str, classes: int, warning: str) -> None:
    """With what is made of it."""
    written(tmp_path, step=step if step != "torch.zeros_like" else "", classes=classes)
    model: Any = net(tmp_path)
    if step == "torch.zeros_like":
        nn.init.zeros_(model.fc.weight)
        nn.init.zeros_(model.fc.bias)
    found = warned(model)
    assert bool(found) == bool(warning)
    assert re.search(warning, found[0] if found else "")


@pytest.mark.parametrize(
    ("arch", "seed"), [("resnet18", 2), ("mobilenet_v3_small", 1), ("shufflenet_v2_x0_5", 0), ("squeezenet1_0", 0)]
)
def test_random_logits_between_0_and_1_bring_no_warning(arch: str, seed: int) -> None:
    """As those of two classes may be, of random weights; these are."""
    torch.manual_seed(seed)
    model = torchvision.models.get_model(arch, weights=None, num_classes=2).eval()
    with torch.no_grad():
        scores = model(synthesize_pictures((64, 64)))
    assert 0 <= scores.min() <= scores.max() <= 1
    assert warned(model, (64, 64)) == []


@pytest.mark.parametrize("classes", [2, 1000])
def test_random_weights_bring_no_warning(classes: int) -> None:
    """Nor does a transformer's head of zeros."""
    torch.manual_seed(0)
    for arch in ("resnet18", "mobilenet_v2"):
        assert warned(torchvision.models.get_model(arch, weights=None, num_classes=classes).eval(), (64, 64)) == []
    small = {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16, "image_size": 32}
    assert warned(torchvision.models.VisionTransformer(**small, num_classes=classes).eval()) == []


def program(model: nn.Module, kind: str, channels: int, folder: Path) -> Any:
    """The model as it is, or of a file of another kind, for 32 x 32 pictures."""
    pictures, file = torch.zeros(2, channels, 32, 32), folder / f"{kind}.pt"
    if kind == "traced":
        torch.jit.trace(model, pictures).save(str(file))
    elif kind == "exported":
        batch = torch.export.Dim("batch", min=1, max=64)
        torch.export.save(torch.export.export(model, (pictures,), dynamic_shapes=({0: batch},)), file)
    return model if kind == "eager" else load_program(file, folder).model


KINDS = pytest.mark.parametrize("kind", ["eager", "traced", "exported"])


@KINDS
@pytest.mark.parametrize(
    ("channels", "remedy"),
    [
        (1, r"it takes 1 channel, and was given 3; channels: 1 \(--channels 1\) feeds it grey"),
        (4, r"it takes 4 channels, .* feeds it tensors of so many channels, for pictures have 1 or 3$"),
        (2, r"it takes 2 channels, .* channels: 2 .* feeds it tensors of so many channels, for pictures have 1 or 3$"),
    ],
)  # fmt: skip
def test_another_number_of_channels_is_told(tmp_path: Path, kind: str, channels: int, remedy: str) -> None:
    """With what to do about it."""
    written(tmp_path, channels=channels)
    model = program(net(tmp_path), kind, channels, tmp_path)
    with pytest.raises(ConfigError, match=rf"does not run on pictures of shape \[2, 3, 32, 32\]: .*; {remedy}"):
        open_backend(model, Config(channels_last=False), SIZE, CPU)


def test_channels_that_do_not_fit_inside_are_the_models_own_fault() -> None:
    """Nothing is said of RGB then."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(4, 8, 3), nn.Flatten()).eval()
    with pytest.raises(ConfigError, match=r"to have 4 channels, but got 8 channels instead$"):
        open_backend(model, Config(channels_last=False), SIZE, CPU)


@KINDS
def test_a_model_of_one_size_says_which(tmp_path: Path, kind: str) -> None:
    """Read off the program where it says so, else found by trial."""
    written(tmp_path, flat=True)
    model = program(net(tmp_path), kind, 3, tmp_path)
    with (
        pytest.raises(ConfigError, match=r"pictures of 32x32: add --resize 32 --crop 32$") as caught,
        advice.suggest_size(model, (224, 224)),
    ):
        open_backend(model, Config(channels_last=False), (224, 224), CPU)
    assert "re-export" not in str(caught.value)


def test_an_exported_programs_own_shape_is_read(tmp_path: Path) -> None:
    """Also where it is no square, which no trial would find; a handler's own code has no flags."""

    class Oblong(nn.Module):  # torch 2.4 does not restore a Sequential
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.fc = nn.Linear(4 * 28 * 38, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(torch.relu(self.conv(x)).flatten(1))

    torch.export.save(torch.export.export(Oblong().eval(), (torch.zeros(2, 3, 30, 40),)), tmp_path / "model.pt2")
    restored = load_program(tmp_path / "model.pt2", tmp_path).model
    for own, remedy in ((False, "add --resize 30 40 --crop 30 40$"), (True, "the handler's own code must make those$")):
        with pytest.raises(ConfigError, match=remedy), advice.suggest_size(restored, SIZE, own=own):
            open_backend(restored, Config(channels_last=False), SIZE, CPU)


def test_other_faults_say_nothing_of_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that is too small is one: many sizes would do. Where the model runs, none are tried."""
    model = nn.Sequential(nn.Conv2d(3, 4, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    with pytest.raises(ConfigError) as caught, advice.suggest_size(model, (8, 8)):
        open_backend(model, Config(channels_last=False), (8, 8), CPU)
    assert "this model takes" not in str(caught.value)
    monkeypatch.setattr(advice, "find_fitting_sizes", lambda *_: [(64, 64)])
    with pytest.raises(ConfigError, match="layer none does not exist") as caught, advice.suggest_size(model, SIZE):
        open_backend(model, Config(layers=("none",)), SIZE, CPU)
    assert "this model takes" not in str(caught.value)


@pytest.mark.parametrize(
    ("head", "words", "most"),
    [
        ([], "the model's output must be class scores", 2),
        ([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)], "mat1 and mat2", 2 * len(advice.SIDES) + 2),
    ],
)
def test_sizes_are_tried_only_where_they_may_be_the_fault(
    head: list[nn.Module], words: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where the model ran, and gave something else; never for long."""
    model, passes = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *head).eval(), list[int]()
    model[0].register_forward_hook(lambda *_: passes.append(1))
    with pytest.raises(ConfigError, match=words) as caught, advice.suggest_size(model, SIZE):
        open_backend(model, Config(channels_last=False), SIZE, CPU)
    assert "this model takes" not in str(caught.value)
    assert 0 < len(passes) <= most
    monkeypatch.setattr(advice, "PATIENCE", -1.0)
    passes.clear()
    assert advice.find_fitting_sizes(model, SIZE) == []
    assert len(passes) <= 2


class Particular(nn.Module):
    """Refuses what is no normalised picture."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 8, stride=8)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 5]`, between 0 and 1."""
        if x.abs().max() > 9:
            raise ValueError("pictures must be normalised")
        return torch.sigmoid(self.head(self.features(x).mean((2, 3))))


def test_a_model_that_refuses_what_is_no_picture_is_packaged_all_the_same() -> None:
    """What its output means is only advice."""
    assert warned(Particular().eval()) == []


@pytest.mark.parametrize("tool", [package.main, inspect_model.main])
def test_both_tools_say_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], tool: Any) -> None:
    """In one line of the error."""
    arguments = written(tmp_path, flat=True)
    assert tool(arguments if tool is package.main else arguments[:4]) == 1
    assert "add --resize 32 --crop 32" in capsys.readouterr().err
    written(tmp_path, channels=1)
    assert tool(arguments if tool is package.main else arguments[:4]) == 1
    assert "it takes 1 channel, and was given 3; channels: 1 (--channels 1) feeds it grey" in capsys.readouterr().err


@pytest.mark.usefixtures("unasked")
def test_a_file_of_safetensors_is_read(tmp_path: Path) -> None:
    """Under any name; the archive holds the weights as a worker can read them."""
    arguments = written(tmp_path)
    state = torch.load(tmp_path / "net.pth", weights_only=True)
    save_file(state, tmp_path / "net.pth")
    text = said([*arguments, "--resize", "32", "--crop", "32"])
    assert "net.pth is in the format safetensors, and goes into the archive as a state dict" in text
    with open_archive(tmp_path / "net.mar") as opened:
        again = torch.load(opened.directory / WEIGHTS, weights_only=True)
    assert {name: value.tolist() for name, value in again.items()} == {name: value.tolist() for name, value in state.items()}


@pytest.mark.parametrize("flag", ["--weights", "--labels", "--config", "--model-file", "--torchscript", "--exported"])
def test_missing_files_are_found_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    """Not when minutes of work are lost; a folder is none either."""
    monkeypatch.setattr(ModelFlags, "load", lambda *_: pytest.fail("the model was loaded"))
    arguments = written(tmp_path)
    arguments = arguments[4:] if flag in ("--torchscript", "--exported") else arguments
    with pytest.raises(ToolError, match=f"{flag}: there is no file nosuch"):
        said([*arguments, flag, "nosuch"])
    if flag != "--config":
        with pytest.raises(ToolError, match=f"{flag}: {tmp_path} is a folder, not a file"):
            said([*arguments, flag, str(tmp_path), "--name", "named"])


def test_advice_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    """A folder with a space in its name."""
    with pytest.raises(ToolError, match=r"mkdir -p 'out store'$"):
        said([*written(tmp_path), "--export-path", "out store"])


def test_a_mean_for_other_values_is_refused_with_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of pictures whose values are 0 to 255."""
    assert package.main([*written(tmp_path), "--mean", "127", "127", "127", "--std", "128", "128", "128"]) == 1
    assert "mean: expected one number for each channel, got [127, 127, 127]; values are 0 to 1 here" in capsys.readouterr().err
