"""A user's own file whose model is one of timm's or transformers': its labels, preparation and kind of scores are taken from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tests.support.models.tiny import Tiny

from camserve.tools.packaging.models.files import load_model_file
from camserve.tools.packaging.models.libraries.own import Own, describe_own
from camserve.tools.packaging.models.libraries.transformers_models import quiet

transformers: Any = pytest.importorskip("transformers")

SIDES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}


def make_vit(**options: Any) -> Any:
    """A small ViT of three named classes."""
    names = {0: "cat", 1: "dog", 2: "bird"}
    config = transformers.ViTConfig(**SIDES, id2label=names, label2id={name: index for index, name in names.items()}, **options)
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(config).eval()


class Wrapped(torch.nn.Module):
    """A module around another one, with a head of its own or without."""

    def __init__(self, inner: Any, head: Any = None) -> None:
        super().__init__()
        self.inner, self.head = inner, head


def test_timms_models_say_how_pictures_are_prepared() -> None:
    """Not ImageNet's mean, where the architecture's weights were trained with another; in a wrapper too."""
    model = timm.create_model("test_vit", num_classes=5)
    own = describe_own(Wrapped(model), [])
    assert own == describe_own(model, [])
    assert {key: own.keys[key] for key in ("resize", "crop", "interpolation", "mean", "std")} == {
        "resize": 168,
        "crop": 160,
        "interpolation": "bicubic",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    assert own.labels is None
    assert own.notes == ("The model is a VisionTransformer of timm's, which says how pictures are prepared",)
    whole = timm.create_model("test_resnet")
    assert len(describe_own(whole, []).labels or ()) == 1000
    assert describe_own(Wrapped(whole, torch.nn.Linear(1000, 5)), []).labels is None
    assert describe_own(Wrapped(model, whole), []) == Own()  # of two, neither counts
    assert describe_own(Tiny(), []) == Own()


@pytest.mark.parametrize("beside", [True, False])
def test_transformers_models_say_it_in_the_file_beside_them(tmp_path: Path, beside: bool) -> None:
    """Without that file, what transformers does by default is taken, and that is said."""
    if beside:
        with quiet():
            transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.25] * 3).save_pretrained(tmp_path)
    own = describe_own(make_vit(problem_type="multi_label_classification"), [tmp_path])
    assert own.keys["mean"] == [0.25 if beside else 0.5] * 3
    assert own.keys["resize"] == (32, 32)
    assert own.keys["scores"] == "sigmoid"
    assert "Scores: sigmoid, as the model's problem_type says; --scores says otherwise" in own.notes
    assert own.labels == ["cat", "dog", "bird"]
    assert any("no preprocessor_config.json lies beside the weights" in note for note in own.notes) == (not beside)


FILE = """
import torch, transformers

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=3, {sides}))

    def forward(self, x):
        return self.net(x).logits
"""


def test_a_file_of_the_users_takes_the_weights_that_transformers_saved(tmp_path: Path) -> None:
    """Under their saved names, which are others than the module's."""
    model = make_vit()
    with quiet():
        model.save_pretrained(tmp_path)
    (tmp_path / "net_of_hf.py").write_text(FILE.format(sides=", ".join(f"{key}={value}" for key, value in SIDES.items())))
    source = load_model_file(tmp_path / "net_of_hf.py", tmp_path / "model.safetensors", tmp_path / "none")
    assert "the weights' names are those that transformers saves; they were loaded as it does" in source.notes
    assert source.weights is None
    assert source.preprocessing["mean"] == [0.5] * 3
    picture = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(source.model(picture), model(picture).logits)
    silent = load_model_file(tmp_path / "net_of_hf.py", tmp_path / "model.safetensors", tmp_path / "none", describe=False)
    assert (silent.preprocessing, silent.labels) == ({}, None)
