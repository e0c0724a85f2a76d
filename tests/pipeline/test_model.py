"""`camserve.Model`: a live module or an archive, explained in this process, without TorchServe."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml
from benchmarks.layers.nets import Branched
from PIL import Image
from tests.support import build
from tests.support.models import nets
from tests.support.monitoring.monitors import Seeing
from torch import Tensor, nn
from torchvision import transforms

import camserve
from camserve.core.errors import ArchiveError, ConfigError, RequestError
from camserve.core.messages import Call
from camserve.tools.archive.archive import Row, ask, load_service

PIXELS = build.noise(80, 64, 3)
SETTINGS: dict[str, Any] = {**build.PLAIN, "resize": 32, "crop": 32, "layers": ["features"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked archive with labels."""
    return build.archive(tmp_path_factory.mktemp("archive") / "cats", labels={"0": "tabby", "1": "lynx", "2": "fox"})


@pytest.fixture(scope="module")
def model(folder: Path) -> camserve.Model:
    """The archive's model."""
    return camserve.Model.from_archive(folder, device="cpu")


def test_an_archive_answers_here_as_behind_torchserve(folder: Path, model: camserve.Model) -> None:
    """The same bytes for the same call, and the same numbers as Python values."""
    body = build.encoded(PIXELS)
    (served,) = ask(load_service(folder), [Row({"body": body}, explain=True)])
    (reply,) = model.run([Call(True, {}, {"body": body})])
    (explanation,) = model.explain(bytes(body))
    answer = json.loads(served.body)
    (target,) = answer["explanations"]

    assert json.loads(reply.body)["classes"] == [
        {**each, "probability": pytest.approx(each["probability"], abs=1e-6)} for each in answer["classes"]
    ]
    assert (explanation.target, explanation.label) == (target["target"], target["label"])
    assert explanation.probability == pytest.approx(target["probability"], abs=1e-6)
    np.testing.assert_allclose(explanation.heatmap, target["heatmap"], atol=1e-5)
    assert explanation.view is not None
    assert list(explanation.view.rounded()) == answer["image"]["view"]
    assert model.metadata["weights"] == "sha256:" + camserve.pipeline.loading.digest_file(folder / "weights.pth")
    assert model.openapi["info"]["title"].startswith("cats")


HEAVY = ("ts", "captum", "model_archiver", "camserve.tools", "torchvision", "torch._dynamo", "sympy")
"""What a worker does without: TorchServe's modules, and those that take 150 MB and seconds of a load."""


def explain_afresh(archive: Path, picture: Path) -> list[str]:
    """What a process of its own prints that loads an archive and explains a picture: its label, and what it imported of `HEAVY`."""
    picture.write_bytes(build.encoded(PIXELS))
    program = (
        "import sys, camserve; model = camserve.Model.from_archive(sys.argv[1]); print(model.explain(sys.argv[2])[0].label);"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, str(archive), str(picture)]
    return subprocess.run(command, capture_output=True, text=True, cwd=build.HANDLERS, check=True).stdout.splitlines()


def test_torchserve_is_not_needed(folder: Path) -> None:
    """Neither it, captum, nor the tools are imported, whether or not they are installed; nor what is large and not needed."""
    assert explain_afresh(folder, folder.parent / "picture.png") == ["tabby", "[]"]


class Bending(nn.Module):
    """A classifier with an operator of torchvision's."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 8, 3, padding=1)
        self.kernel = nn.Parameter(torch.rand(8, 8, 1, 1))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Scores."""
        maps = torch.relu(self.features(x))
        bent = torchvision.ops.deform_conv2d(maps, 0 * maps[:, :2], self.kernel)
        scores: Tensor = self.fc(bent.mean((2, 3)))
        return scores


def test_a_program_may_call_operators_of_torchvision(tmp_path: Path) -> None:
    """TorchScript names them, and nothing in it imports them."""
    torch.manual_seed(0)
    labels = {str(number): f"class {number}" for number in range(3)}
    folder = build.archive(tmp_path / "bending", SETTINGS, labels=labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, of torchvision's code
        torch.jit.trace(Bending().eval(), torch.rand(2, 3, 32, 32)).save(str(folder / "bending.pt"))
    manifest = folder / "MAR-INF" / "MANIFEST.json"
    told = json.loads(manifest.read_text())
    del told["model"]["modelFile"]
    told["model"]["serializedFile"] = "bending.pt"
    manifest.write_text(json.dumps(told))

    label, heavy = explain_afresh(folder, tmp_path / "picture.png")

    assert label in labels.values()
    assert "torchvision" in heavy


def test_every_form_of_a_picture_gets_one_answer(model: camserve.Model, tmp_path: Path) -> None:
    """A path, bytes, a PIL image, an array, and the tensor that preprocessing makes of it."""
    path = tmp_path / "picture.png"
    path.write_bytes(build.encoded(PIXELS))
    image = Image.fromarray(PIXELS)
    forms: list[Any] = [path, str(path), path.read_bytes(), image, image.convert("RGBA"), PIXELS]
    first, *others = model.explain(forms)
    for other in others:
        assert np.array_equal(other.heatmap, first.heatmap)
        assert other.region == first.region
    tensor = model.preprocess(image)
    (of_tensor,) = model.explain(tensor)
    assert np.allclose(of_tensor.heatmap, first.heatmap, atol=1e-6)
    assert of_tensor.view is None
    assert len(model.explain(torch.stack([tensor, tensor]))) == 2
    assert [each[0].label for each in model.predict(forms)] == ["tabby"] * len(forms)


def test_sixteen_bit_grey_is_scaled_as_in_a_file(model: camserve.Model) -> None:
    """Pillow's own conversion would clip it to white."""
    grey = Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 257)
    buffer = io.BytesIO()
    grey.save(buffer, "PNG")
    of_file, of_image = model.explain([buffer.getvalue(), grey])
    assert np.array_equal(of_file.heatmap, of_image.heatmap)


def test_an_explanation_shows_and_saves_itself(model: camserve.Model, tmp_path: Path) -> None:
    """In a notebook as PNG, of several targets side by side; in files by their ending; a tensor has no picture."""
    (explanation,) = model.explain(PIXELS, target=["tabby", 2])
    assert [each.label for each in explanation.targets] == ["tabby", "fox"]
    shown = Image.open(io.BytesIO(explanation._repr_png_() or b""))
    assert shown.height >= 64
    assert shown.width > 2 * 80
    for name, form in (("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.webp", "WEBP")):
        with Image.open(explanation.save(tmp_path / name)) as saved:
            assert saved.format == form
    heatmaps = np.load(explanation.save(tmp_path / "a.npy"))
    assert np.array_equal(heatmaps[0], explanation.heatmap)
    assert "tabby" in repr(explanation)
    with pytest.raises(ValueError, match=r"ends in \.png, .*got 'a\.gif'"):
        explanation.save(tmp_path / "a.gif")
    (of_tensor,) = model.explain(np.zeros((3, 64, 64), np.float32))
    assert of_tensor._repr_png_() is None
    with pytest.raises(ValueError, match="no picture"):
        of_tensor.save(tmp_path / "b.png")


def test_what_is_wrong_is_said(model: camserve.Model) -> None:
    """Options as over HTTP; which of several pictures; and what a picture may be."""
    with pytest.raises(RequestError, match="no class has the label"):
        model.explain(PIXELS, target="cat")
    with pytest.raises(RequestError, match="method: expected"):
        model.explain(PIXELS, method="nope")
    with pytest.raises(RequestError, match=r"^picture 1: data: "):
        model.explain([PIXELS, b"no picture"])
    with pytest.raises(TypeError, match=r"got float64 \[80, 64, 3\]"):
        model.explain(np.zeros((80, 64, 3)))
    with pytest.raises(TypeError, match="got int"):
        model.explain([3])  # type: ignore[list-item]


class Pooled(nn.Module):
    """Five classes behind global average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.ReLU())
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 5]`."""
        return self.fc(self.features(x).mean((2, 3)))


def test_a_live_module_is_explained_by_the_formula() -> None:
    """Its labels as a list, settings by name; Grad-CAM is the sum of the activations, weighted by the class's row."""
    torch.manual_seed(0)
    module = Pooled().train()
    model = camserve.Model(module, labels=[f"class {index}" for index in range(5)], **SETTINGS)
    assert not module.training
    (explanation,) = model.explain(PIXELS, target="class 3", method="gradcam")
    pixels = transforms.functional.to_tensor(transforms.functional.resize(Image.fromarray(PIXELS), 32))
    activation = module.features(transforms.functional.center_crop(pixels, 32)[None])[0].detach().double().numpy()
    raw = np.maximum((module.fc.weight[3].detach().double().numpy()[:, None, None] * activation).sum(0), 0)
    np.testing.assert_allclose(explanation.heatmap, (raw - raw.min()) / (raw.max() - raw.min()), atol=1e-5)
    assert explanation.target == 3


def test_a_preprocessing_of_ones_own(model: camserve.Model) -> None:
    """What it keeps of the picture is not known, so there is neither a view nor a region; monitoring knows no scale."""
    own = camserve.Model(Pooled(), preprocess=lambda image: torch.rand(3, 32, 32) + image.width * 0, layers=["features"])
    (explanation,) = own.explain(PIXELS)
    assert explanation.view is None
    assert explanation.region is None
    assert own.scale is None
    assert model.scale is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ["nope"]}, "nope"),
        ({"resize": "big"}, "resize"),
        ({"colour": 1}, "unknown key"),
        ({"labels": ["a"]}, "labels: the model has 5 outputs and the labels file 1 entries"),
    ],
)
def test_wrong_settings_stop_it(settings: dict[str, Any], message: str) -> None:
    """In one line, before anything is explained."""
    with pytest.raises(ConfigError, match=message):
        camserve.Model(Pooled(), **{**SETTINGS, **settings})


def test_an_observer_sees_what_is_explained_here(model: camserve.Model) -> None:
    """Until another, or nobody, takes its place."""
    model.observe(observer := Seeing())
    model.predict([PIXELS] * 3)
    model.observe(None)
    model.predict(PIXELS)
    assert len(observer.looks) == 3


def test_more_pictures_than_a_batch(folder: Path, tmp_path: Path) -> None:
    """They go through in several, and each is answered."""
    small = shutil.copytree(folder, tmp_path / "small")
    config = yaml.safe_load((small / "model-config.yaml").read_text())
    config["explain"]["max_batch"] = 2
    (small / "model-config.yaml").write_text(yaml.safe_dump(config))
    model = camserve.Model.from_archive(small, device="cpu")
    assert model.served.config.max_batch == 2
    assert len(model.explain([PIXELS] * 5)) == 5


def test_two_archives_side_by_side(folder: Path, tmp_path: Path) -> None:
    """Each has its own `model.py`; what this process had loaded under that name stays."""
    import types

    mine = sys.modules["model"] = types.ModuleType("model")
    try:
        other = build.archive(tmp_path / "dogs", classes=4)
        first, second = (camserve.Model.from_archive(each, device="cpu") for each in (folder, other))
        assert (len(first.served.labels), len(second.served.labels)) == (3, 4)
        assert (len(first.predict(PIXELS)[0]), len(second.predict(PIXELS)[0])) == (3, 4)
        assert sys.modules["model"] is mine
        assert str(other) not in sys.path
    finally:
        del sys.modules["model"]


@pytest.mark.parametrize("kind", ["script", "exported"])
def test_archives_of_programs(kind: str, folder: Path, tmp_path: Path) -> None:
    """TorchScript, and programs of torch.export."""
    directory = shutil.copytree(folder, tmp_path / "program")
    manifest = json.loads((directory / "MAR-INF" / "MANIFEST.json").read_text())
    del manifest["model"]["modelFile"]
    manifest["model"]["serializedFile"] = "model.pt"
    (directory / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    (directory / "index_to_name.json").unlink()
    (directory / "model.pt").write_bytes(nets.as_file(Pooled().eval(), kind, nets.pictures(2)))
    config = (
        (directory / "model-config.yaml")
        .read_text()
        .replace("crop: 64", f"crop: {nets.SIDE}")
        .replace("resize: 64", f"resize: {nets.SIDE}")
    )
    (directory / "model-config.yaml").write_text(config)
    model = camserve.Model.from_archive(directory, device="cpu")
    assert model.backend.kind == {"script": "torchscript", "exported": "exported"}[kind]
    assert model.explain(PIXELS)[0].heatmap.max() == 1


def test_a_stock_archive_is_opened_with_the_stock_preprocessing(folder: Path, tmp_path: Path) -> None:
    """It has no `explain:` section; the defaults are the stock handler's."""
    directory = build.archive(tmp_path / "stock", {}, handler="stock")
    model = camserve.Model.from_archive(directory, device="cpu")
    assert (model.served.config.resize, model.served.config.crop) == (256, 224)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("Mine", "from gradcam_handler import GradCAMHandler\nclass Mine(GradCAMHandler):\n    pass\n"),
        ("GradCAMHandler", "import gradcam_handler\nclass GradCAMHandler(gradcam_handler.GradCAMHandler):\n    topk = 1\n"),
        (
            "GradCAMHandler",
            "from x import ImageClassifier\nclass GradCAMHandler(ImageClassifier):\n    image_processing = None\n",
        ),
        (
            "GradCAMHandler",
            (build.HANDLERS / "gradcam_handler.py").read_text().replace("    face: Model\n", "    image_processing = None\n"),
        ),
    ],
    ids=["subclass", "same name", "stock's", "ours changed"],
)
def test_a_handler_with_steps_of_its_own_is_refused(tmp_path: Path, name: str, source: str) -> None:
    """Without TorchServe they would be left out without a word, also where the class has the name of ours."""
    directory = build.archive(tmp_path / "own", handler=source)
    with pytest.raises(ArchiveError, match=rf"brings steps of its own \({name}\)"):
        camserve.Model.from_archive(directory)


# ------------------------------------------------------------------ opening archives


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    """A zip file of these members."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def test_an_archive_that_swells_is_refused_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its ratio, or by its bytes; one of ordinary size is taken whatever its ratio."""
    path = zipped(tmp_path / "bomb.mar", {"zeros": bytes(3_000_000)})
    with pytest.raises(ArchiveError, match="cannot be read"):
        camserve.Model.from_archive(path)  # small enough to be unpacked, and no archive
    monkeypatch.setattr("camserve.pipeline.archive.FREE_BYTES", 1_000_000)
    with pytest.raises(ArchiveError, match=r"would unpack to more than 1000000 bytes"):
        camserve.Model.from_archive(path)


@pytest.mark.parametrize("key", ["configFile", "modelFile", "serializedFile"])
@pytest.mark.parametrize("name", ["/etc/hostname", "../outside.yaml"])
def test_a_manifest_names_files_of_its_archive_only(folder: Path, tmp_path: Path, key: str, name: str) -> None:
    """Another file of the machine is neither read nor run."""
    directory = shutil.copytree(folder, tmp_path / "own")
    (tmp_path / "outside.yaml").write_text("explain: {}\n")
    manifest = json.loads((directory / "MAR-INF" / "MANIFEST.json").read_text())
    manifest["model"][key] = name
    (directory / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(ArchiveError, match=f"{key} names a file outside the archive"):
        camserve.Model.from_archive(directory)


def test_the_unpacked_folder_goes_with_the_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays as long as the model may read from it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    archive = shutil.make_archive(str(tmp_path / "cats"), "zip", folder)
    model = camserve.Model.from_archive(archive, device="cpu")
    assert list(tmp_path.glob("camserve-*"))
    del model
    import gc

    gc.collect()
    assert not list(tmp_path.glob("camserve-*"))


def test_uneven_gradients_make_another_method_the_default() -> None:
    """Only where neither layer nor method is given; Grad-CAM++ stays the default of all else."""
    tokens = nets.net("tokens")
    assert camserve.Model(tokens, resize=32, crop=32).metadata["method"] == "hirescam"
    assert camserve.Model(tokens, resize=32, crop=32, method="gradcam++").metadata["method"] == "gradcam++"
    assert camserve.Model(tokens, resize=32, crop=32, layers=["blocks.1.norm"]).metadata["method"] == "gradcam++"
    torch.manual_seed(0)
    branched = camserve.Model(Branched(), resize=32, crop=32).metadata  # half of the scores go past each of its last layers
    assert (branched["method"], branched["layers"]) == ("hirescam", ["stem"])
    described = camserve.Model(nets.net("pooled"), resize=32, crop=32).metadata
    assert (described["method"], described["bypass"], described["doubts"]) == ("gradcam++", {"features": 0.0}, {})


def test_what_speaks_against_a_layer_is_logged_and_described(caplog: pytest.LogCaptureFixture) -> None:
    """The doctor reads it in the metadata."""
    described = camserve.Model(nets.net("tokens"), resize=32, crop=32, layers=["blocks.0.norm"]).metadata
    assert described["bypass"]["blocks.0.norm"] > 0.1
    assert "past it, which its maps cannot show" in described["doubts"]["blocks.0.norm"]
    assert f"camserve: layer blocks.0.norm: {described['doubts']['blocks.0.norm']}" in caplog.text
