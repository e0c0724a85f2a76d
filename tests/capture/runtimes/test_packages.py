"""Packages of AOTInductor: those that packaging made are run where they were made for, and others are refused in words."""

from __future__ import annotations

import json
import logging
import re
import zipfile
from pathlib import Path

import pytest
import torch
from tests.support.models import nets

from camserve.capture import Backend, load_exported, open_backend
from camserve.capture.runtimes.graph import GRAPH
from camserve.capture.runtimes.packages import MADE_FOR, PACKAGE, _describe_machine
from camserve.core.config import Config
from camserve.core.errors import ConfigError
from camserve.pipeline.archive import Archive
from camserve.pipeline.loading import find_graph, load_module
from camserve.tools.archive.trust import find_code
from camserve.tools.console import ToolError
from camserve.tools.packaging.models.files import load_program

CPU = torch.device("cpu")
SIZE = (nets.SIDE, nets.SIDE)


def opened(name: str, folder: Path | None) -> Backend:
    """A net with `runtime: aot`, of an archive that lies in this folder."""
    graph = folder / GRAPH if folder else None
    return open_backend(nets.net(name), Config(runtime="aot", channels_last=False), SIZE, CPU, graph=graph)


def test_without_a_package_torch_runs(caplog: pytest.LogCaptureFixture) -> None:
    """A module in a notebook, or an archive whose configuration was changed by hand."""
    with caplog.at_level(logging.WARNING):
        made = opened("pooled", None)
    assert made.runtime.name == "torch"
    assert made.runtime.why == "aot: packaging compiles it, into the archive (--runtime aot), and this has none"
    assert "torch runs in place of the runtime aot" in caplog.text


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"capability": "AVX9000"}, "the archive's package was compiled for torch .* with AVX9000, and this is torch "),
        ({"torch": "2.0.0"}, "was compiled for torch 2.0.0 on "),
        (None, "was compiled for nothing known, and this is torch "),
    ],
    ids=["processor", "torch", "nothing"],
)
def test_a_package_for_another_processor_is_not_even_opened(changed: dict[str, str] | None, why: str, tmp_path: Path) -> None:
    """An instruction that the processor lacks would end the worker without a word."""
    (tmp_path / PACKAGE).write_bytes(b"never read")
    if changed is not None:
        (tmp_path / MADE_FOR).write_text(json.dumps({**_describe_machine(), **changed}))
    made = opened("pooled", tmp_path)
    assert made.runtime.name == "torch"
    assert re.search(why, made.runtime.why)


def test_a_package_is_code(tmp_path: Path) -> None:
    """The tools name it, and want --trust; the worker finds it where no graph lies beside it."""
    (tmp_path / PACKAGE).write_bytes(b"")
    archive = Archive(tmp_path, {"model": {"modelName": "m", "handler": "image_classifier"}}, {})
    assert find_code(archive, None) == [f"{PACKAGE} (compiled code, which runs the model)"]
    assert find_graph(tmp_path) == tmp_path / GRAPH
    (tmp_path / PACKAGE).unlink()
    assert find_graph(tmp_path) is None


def test_packages_of_others_are_refused_with_what_to_do(tmp_path: Path) -> None:
    """They give scores and nothing else; as a file, and in an archive that TorchServe serves with its `export` setting."""
    foreign = tmp_path / "theirs.pt2"
    with zipfile.ZipFile(foreign, "w") as file:
        file.writestr("theirs/data/aotinductor/model/made.wrapper.so", b"")
    words = r"theirs\.pt2 is a package of AOTInductor: .*no layer to explain; .*--runtime aot"
    with pytest.raises(ToolError, match=words):
        load_program(foreign, tmp_path)
    with pytest.raises(ConfigError, match=words):
        load_exported(foreign)
    for name in ("theirs.pt2", "theirs.so"):
        (tmp_path / name).touch()
        model = {"modelName": "m", "handler": "image_classifier", "serializedFile": name}
        with pytest.raises(ConfigError, match=r"is a package of AOTInductor: .*--runtime aot"):
            load_module(Archive(tmp_path, {"model": model}, {}), CPU)


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize("name", ["pooled", "deep", "attending"])
def test_a_package_gives_what_torch_gives(name: str, tmp_path: Path) -> None:
    """With a closed form, and a head that is differentiated in torch; read again it need not be compiled."""
    assert opened(name, tmp_path).runtime.name == "aot"
    written = (tmp_path / PACKAGE).stat().st_mtime_ns
    made, plain = opened(name, tmp_path), open_backend(nets.net(name), Config(channels_last=False), SIZE, CPU)
    assert (made.runtime.name, made.runtime.why, made.runtime.layers) == ("aot", "", plain.layers)
    assert (tmp_path / PACKAGE).stat().st_mtime_ns == written
    layer = plain.layers[0]
    for count in (1, 2, 5):
        batch, rows, targets = nets.pictures(count, seed=count), torch.arange(count), torch.arange(count) % nets.CLASSES
        found, wanted = (each.capture.forward(batch, [layer]) for each in (made, plain))
        assert torch.allclose(found.values, wanted.values, atol=1e-6)
        assert torch.allclose(found.activation(layer), wanted.activation(layer), atol=1e-6)
        assert torch.allclose(found.gradients(layer, rows, targets), wanted.gradients(layer, rows, targets), atol=1e-6)
