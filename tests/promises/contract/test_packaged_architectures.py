"""Architectures through packaged archives, of all three kinds: each explains its test picture as the model in this process."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from tests.support.comparison.closeness import Exact, assert_close, exact, unscaled
from tests.support.models import architectures, nets
from tests.support.processes.fork_server import ForkServer

from camserve.capture import open_backend
from camserve.tools.commands import package
from camserve.tools.console import Progress
from camserve.tools.packaging import packager

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")

ARCHIVED = {
    "alexnet": "script",
    "convnext_tiny": "trace",
    "densenet121": "trace",
    "efficientnet_b0": "script",
    "googlenet": "trace",
    "mnasnet0_5": "script",
    "mobilenet_v2": "script",
    "mobilenet_v3_large": "trace",
    "mobilenet_v3_small": "script",
    "regnet_x_400mf": "script",
    "regnet_y_400mf": "trace",
    "resnet18": "script",
    "shufflenet_v2_x0_5": "script",
    "squeezenet1_1": "script",
    "swin_t": "trace",
    "vit_b_32": "script",
}
"""One or two of each family whose size fits, and how they become TorchScript."""


@functools.cache
def eager(name: str, transform_input: bool) -> tuple[str, int, Exact]:
    """Default layer and most probable class of the model in this process, and what it says of the picture that packaging tries.

    `transform_input`: as torchvision's builders have it for published weights (GoogLeNet, Inception).
    """
    model, side = architectures.built(name), architectures.side_of(name)
    if transform_input and hasattr(model, "transform_input"):
        vars(model)["transform_input"] = True
    made, picture = open_backend(model, architectures.prepared(name), (side, side), CPU), architectures.tried(name)
    target = int(made.capture.forward(picture[None], ()).logits.argmax())
    return made.layers[0], target, exact(model, made.layers[0], picture, target)


def source(name: str, kind: str, folder: Path) -> list[str]:
    """The files of a model of this kind, and the flags that package them."""
    model, file = architectures.built(name), folder / "program.pt"
    if kind == "eager":
        torch.save(model.state_dict(), folder / "weights.pth")
        return ["--torchvision", name, "--weights", str(folder / "weights.pth")]
    file.write_bytes(nets.as_file(model, kind, architectures.batch(name)))
    return ["--exported" if kind == "exported" else "--torchscript", str(file)]


QUICK = {
    "eager": ("googlenet", "mobilenet_v3_small"),
    "script": ("shallow_mobilenet_v3", "shallow_resnet", "shallow_shufflenet_v2", "squeezenet1_1"),
    "trace": ("shallow_convnext", "shallow_regnet_y", "shallow_swin"),
    "exported": ("shallow_mobilenet_v3", "shallow_resnet", "squeezenet1_1"),
}
"""Each kind with what is particular in it, once: pictures that the model changes itself, branches, groups, gates, scores behind a
ReLU, channels that come last. `test_architectures` has each family, eager; the slow tests have them all, as they are published."""

CASES = [(name, "eager") for name in sorted(architectures.SMALLEST)]
CASES += [(name, script) for kind in ("script", "trace") for name, script in ARCHIVED.items() if script == kind]
CASES += [(name, "exported") for name in ARCHIVED]
QUICK_CASES = [(name, kind) for kind, names in QUICK.items() for name in names]
TABLE = [pytest.param(name, kind, id=f"{kind}-{name}") for name, kind in QUICK_CASES]
TABLE += [pytest.param(*each, id=f"{each[1]}-{each[0]}", marks=pytest.mark.slow) for each in CASES if each not in QUICK_CASES]
"""By kind, and so by the tests' names: `-k exported-` runs one of them."""


@pytest.mark.parametrize(("name", "kind"), TABLE)
def test_an_archive_explains_as_the_model(
    name: str, kind: str, fork_server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packaged, unpacked and loaded as a worker does: the same layer by rule, and the same class; probabilities and map are those
    of the model in float64, as far as float32 can tell."""
    fork_server.replace_fresh(monkeypatch)
    side = str(architectures.side_of(name))
    flags = [*source(name, kind, tmp_path), "--name", "packaged", "--resize", side, "--crop", side, "--channels-last", "false"]
    flags += ["--interpolation", "bilinear"]  # some architectures' own weights want another
    flags += ["--method", "gradcam++"]  # of models with a class token another is the default
    archive = packager.package(package.parse([*flags, "--export-path", str(tmp_path)]), Progress())
    assert archive.is_file()
    answer = json.loads(fork_server.result["body"])
    layer, target, wanted = eager(name, transform_input=kind == "eager")
    (explanation,) = answer["explanations"]
    assert (answer["layer"], explanation["target"]) == (layer, target)
    for each in answer["classes"]:
        assert each["probability"] == pytest.approx(wanted.probabilities[each["index"]], abs=wanted.probability_error)
    assert_close(unscaled(explanation["heatmap"], explanation["range"]), wanted.map, wanted.map_error)
