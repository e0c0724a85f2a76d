"""torchvision's architectures: preprocessing, labels and classes, and the pictures that vision transformers are built for."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torchvision.models import vision_transformer as vit

from camserve.capture import open_backend
from camserve.core.config import Config
from camserve.tools.console import ToolError
from camserve.tools.packaging.models.files import load_model_file
from camserve.tools.packaging.models.libraries import architectures
from camserve.tools.packaging.models.libraries.architectures import load_architecture
from camserve.tools.packaging.models.libraries.vit import find_image_size


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
    assert source.model_file is not None
    assert source.model_file.read_text().count("class ") == 1


def test_a_fine_tuned_file_decides_the_number_of_classes(tmp_path: Path) -> None:
    """Three outputs instead of a thousand: built into the model's file, and ImageNet's labels are not taken."""
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), tmp_path / "r.pth")
    source = load_architecture("resnet18", tmp_path, tmp_path / "r.pth", random=False)
    assert source.labels is None
    assert source.model_file is not None
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


ARCH = "vit_small_8"


def build(*, weights: vit.ViT_B_16_Weights | None = None, progress: bool = True, **options: Any) -> torch.nn.Module:
    """A vision transformer as torchvision's builders make them, of few parameters."""
    sizes = {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
    return vit._vision_transformer(**sizes, weights=weights, progress=progress, **options)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """That one among torchvision's, with the metadata of vit_b_16's weights: 224 pixels by default, or 384."""
    build.__module__ = vit.__name__
    monkeypatch.setitem(torchvision.models._api.BUILTIN_MODELS, ARCH, build)
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name, real=torchvision.models.get_model_weights: (
        vit.ViT_B_16_Weights if name == ARCH else real(name)
    ))  # fmt: skip


def state_file(folder: Path, side: int, classes: int) -> Path:
    """Weights of the small transformer, trained on pictures of this side."""
    torch.manual_seed(0)
    torch.save(build(image_size=side, num_classes=classes).state_dict(), folder / "small.pth")
    return folder / "small.pth"


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("side", "preprocessing", "note"),
    [
        (384, {"resize": 384, "crop": 384, "interpolation": "bicubic"}, "as for torchvision's IMAGENET1K_SWAG_E2E_V1; --resize"),
        (48, {"resize": 55, "crop": 48, "interpolation": "bilinear"}, "of 48x48: they are resized to 55 and cropped to 48"),
        (224, {"resize": 256, "crop": 224, "interpolation": "bilinear"}, ""),
    ],
)
def test_weights_decide_the_pictures_of_a_vision_transformer(
    tmp_path: Path, side: int, preprocessing: dict[str, Any], note: str
) -> None:
    """By the number of its positions: it is built for that side, and pictures are prepared as published weights' of that side."""
    file = state_file(tmp_path, side, 5)
    source = architectures.load_architecture(ARCH, tmp_path, file, random=False)
    assert {key: source.preprocessing[key] for key in preprocessing} == preprocessing
    assert (note in " ".join(source.notes)) if note else not source.notes
    assert source.weights == file  # they go into the archive as they are
    assert f"image_size={side}, num_classes=5" in source.model_file.read_text()  # type: ignore[union-attr]
    with torch.no_grad():
        assert source.model(torch.zeros(1, 3, side, side)).shape == (1, 5)
    again = load_model_file(source.model_file, file, tmp_path / "none")  # type: ignore[arg-type]
    assert again.model.image_size == side


@pytest.mark.usefixtures("small")
def test_such_a_transformer_is_explained(tmp_path: Path) -> None:
    """A layer with a map of its own size is found."""
    source = architectures.load_architecture(ARCH, tmp_path, state_file(tmp_path, 48, 5), random=False)
    config = Config.from_mapping({**source.preprocessing, "channels_last": False})
    found = open_backend(source.model, config, (48, 48), torch.device("cpu"))
    assert found.maps[-1].cells == 36


@pytest.mark.usefixtures("small")
def test_weights_of_another_transformer_are_refused_in_words(tmp_path: Path) -> None:
    """Those without positions, and those of another patch size."""
    torch.save({"fc.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    with pytest.raises(ToolError, match=r"do not fit torchvision's vit_small_8: .* of the model's tensors missing"):
        architectures.load_architecture(ARCH, tmp_path, tmp_path / "other.pth", random=False)
    odd = {"encoder.pos_embedding": torch.zeros(1, 0, 8), "conv_proj.weight": torch.zeros(8, 3, 8, 8)}
    assert find_image_size(ARCH, vit.ViT_B_16_Weights.DEFAULT, odd) == 224


@pytest.mark.parametrize(
    "arch", [name for name in torchvision.models.list_models(module=torchvision.models) if name.startswith("vit")]
)
def test_published_transformers_are_built_for_their_weights_pictures(arch: str) -> None:
    """All of torchvision's: the generated file's options give as many positions as the weights' crop has patches."""
    published = torchvision.models.get_model_weights(arch).DEFAULT
    side = find_image_size(arch, published, None)
    crop = architectures._preprocessing(published)["crop"]
    assert side == crop
    with torch.device("meta"):
        model = torchvision.models.get_model(arch, weights=None, image_size=side)
    assert model.encoder.pos_embedding.shape[1] == (crop // model.patch_size) ** 2 + 1


def test_other_architectures_take_any_picture() -> None:
    """Nothing is given to their builders."""
    for arch in ("resnet18", "swin_t", "maxvit_t"):
        assert find_image_size(arch, torchvision.models.get_model_weights(arch).DEFAULT, {}) is None


@pytest.mark.usefixtures("small")
def test_random_and_published_weights_are_for_the_default_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the published ones are for 384 pixels, as vit_h_14's are for 518, the architecture is built for that."""
    large = vit.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1
    weights = type("Weights", (), {"DEFAULT": large})
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: weights)
    monkeypatch.setattr(architectures, "_download", lambda *_: partial(build, image_size=384)().state_dict())
    for random in (True, False):
        source = architectures.load_architecture(ARCH, tmp_path, None, random=random)
        assert vars(source.model)["image_size"] == source.preprocessing["crop"] == 384
        assert source.notes == ()
