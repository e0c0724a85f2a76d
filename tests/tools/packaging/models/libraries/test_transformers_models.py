"""Folders that transformers' `save_pretrained` wrote: architecture, weights, labels and preparation."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from camserve import Model
from camserve.tools.archive.archive import open_archive
from camserve.tools.archive.fresh.modules import Beside
from camserve.tools.commands import package
from camserve.tools.console import ToolError
from camserve.tools.packaging.models.libraries.transformers_models import (
    find_scores,
    load_as_transformers,
    load_transformers,
    quiet,
)
from camserve.tools.packaging.models.source import ModelSource

transformers: Any = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
NAMES = {0: "cat", 1: "dog", 2: "bird"}
CONVOLUTIONS: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


def save(folder: Path, kind: str = "ViT", processor: Any = None, names: dict[int, str] = NAMES, **options: Any) -> Any:
    """Writes a small classifier as its users do; returns it."""
    torch.manual_seed(0)
    given = {"id2label": names, "label2id": {name: index for index, name in names.items()}} if names else {"num_labels": 2}
    config = getattr(transformers, f"{kind}Config")(**(SMALL if kind == "ViT" else {}), **given, **options)
    model = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    with quiet():
        model.save_pretrained(folder)
        (processor or transformers.ViTImageProcessor(size={"height": 32, "width": 32})).save_pretrained(folder)
    return model


def rebuild(source: ModelSource) -> Any:
    """What a worker builds."""
    assert source.model_file is not None
    with Beside([source.model_file.parent], ()):
        model = importlib.import_module(source.model_file.stem).Model()
    model.load_state_dict(source.model.state_dict())
    return model.eval()


PICTURE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kind", "options"), [("ViT", {}), ("ResNet", CONVOLUTIONS)])
def test_a_folder_has_all_that_packaging_needs(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    """Its weights are saved under other names than the module's, where transformers does so; a worker builds the same."""
    model = save(tmp_path / "it", kind, **options)
    if kind == "ViT":
        assert set(load_file(tmp_path / "it" / "model.safetensors")) != set(model.state_dict())
    source = load_transformers(tmp_path / "it", tmp_path)
    assert source.labels == ["cat", "dog", "bird"]
    keys = {"resize": (32, 32), "crop": None, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}
    assert source.preprocessing == keys
    assert source.requires == ("transformers",)
    with torch.no_grad():
        scores = model(PICTURE).logits
        assert torch.equal(source.model(PICTURE).logits, scores)
        assert torch.equal(rebuild(source)(PICTURE).logits, scores)


def test_colours_that_the_processor_turns_round_are_turned_round_in_the_model(tmp_path: Path) -> None:
    """As MobileViT's does: the archive hands over red first."""
    processor = transformers.MobileViTImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    model = save(tmp_path / "it", "ResNet", processor, **CONVOLUTIONS)
    source = load_transformers(tmp_path / "it", tmp_path)
    assert source.notes[1] == "Its image processor hands over blue, green, red; the archive's model turns them round"
    with torch.no_grad():
        scores = model(PICTURE.flip(1)).logits
        assert torch.equal(source.model(PICTURE).logits, scores)
        assert torch.equal(rebuild(source)(PICTURE).logits, scores)


def test_names_that_transformers_makes_up_are_no_labels(tmp_path: Path) -> None:
    """`LABEL_0` says no more than the index."""
    save(tmp_path / "it", names={})
    assert load_transformers(tmp_path / "it", tmp_path).labels is None


def test_a_folder_without_a_processor_is_refused_unless_the_user_says_how(tmp_path: Path) -> None:
    """Another normalisation than the training's would give wrong answers without a word."""
    save(tmp_path / "it")
    (tmp_path / "it" / "preprocessor_config.json").unlink()
    source = load_transformers(tmp_path / "it", tmp_path)
    with pytest.raises(
        ToolError, match=r"holds no preprocessor_config.json, .*save_pretrained\(FOLDER\); or say how with --resize"
    ):
        source.choose_keys({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)})
    assert source.choose_keys({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "resize": 32})["resize"] == 32


def test_what_is_no_trained_classifier_is_refused(tmp_path: Path) -> None:
    """A trunk alone, weights without a head, no configuration, and one that is not transformers' own."""
    folder = tmp_path / "it"
    save(folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: each for name, each in weights.items() if "classifier" not in name}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ToolError, match=r"the weights lack 2 of ViTForImageClassification's tensors \(classifier.bias, .*random"):
        load_transformers(folder, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["ViTModel"]}))
    with pytest.raises(ToolError, match="it holds ViTModel, which is no image classifier of transformers"):
        load_transformers(folder, tmp_path)
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mine"}))
    with pytest.raises(ToolError, match=r"its config\.json is not one of transformers' own"):
        load_transformers(folder, tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(ToolError, match=r"holds no config\.json; give a folder that model\.save_pretrained"):
        load_transformers(folder, tmp_path)


class Wrapped(torch.nn.Module):
    """As a user's own file has it."""

    def __init__(self, inner: Any, head: Any = None) -> None:
        super().__init__()
        self.net, self.head = inner, head

    def forward(self, x: torch.Tensor) -> Any:
        """Scores."""
        return self.net(x).logits


def test_saved_names_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    """For a module of transformers' in a user's own file; other weights leave it as it was."""
    model = save(tmp_path)
    torch.manual_seed(5)
    other = Wrapped(transformers.ViTForImageClassification(model.config)).eval()
    assert not load_as_transformers(other, {"x": torch.ones(1)})
    assert not load_as_transformers(torch.nn.Linear(1, 1), {})
    assert not load_as_transformers(Wrapped(other.net, torch.nn.Linear(3, 2)), load_file(tmp_path / "model.safetensors"))
    assert load_as_transformers(other, load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(other(PICTURE), model(PICTURE).logits)


def test_the_kind_of_scores_is_that_of_the_training() -> None:
    """Where the configuration says it."""
    assert find_scores(transformers.ViTConfig()) == {}
    assert find_scores(transformers.ViTConfig(problem_type="multi_label_classification")) == {"scores": "sigmoid"}


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_folder_becomes_an_archive_whose_requirements_name_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It explains a picture in a process that has only what TorchServe installs; and so does one of timm's, which is carried."""
    save(tmp_path / "pets")
    assert package.main(["--transformers", str(tmp_path / "pets"), "--export-path", str(tmp_path)]) == 0
    assert "requirements.txt names it" in capsys.readouterr().out
    with open_archive(tmp_path / "pets.mar") as opened:
        wanted = opened.file("requirementsFile")
        assert wanted is not None
        assert wanted.read_text() == f"transformers=={transformers.__version__}\n"
    (explanation,) = Model.from_archive(tmp_path / "pets.mar").explain(Image.new("RGB", (40, 50), "red"))
    assert explanation.label in NAMES.values()
    assert package.main(["--timm", "test_resnet", "--random-weights", "--export-path", str(tmp_path)]) == 0
    assert "Bundled, since TorchServe does not bring them: timm\n" in capsys.readouterr().out
    with open_archive(tmp_path / "test_resnet.mar") as opened:
        assert (opened.directory / "timm" / "__init__.py").is_file()
        assert not (opened.directory / "huggingface_hub").exists()
        assert (opened.directory / f"licenses/timm-{timm.__version__}").is_dir()
