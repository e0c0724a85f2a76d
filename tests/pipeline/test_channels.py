"""Models of other than three channels, from the request to the answer, against float64."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support.build import encoded, noise
from tests.support.comparison.closeness import assert_close, exact, unscaled
from torch import Tensor, nn

import camserve
from camserve.core.errors import ConfigError, RequestError
from camserve.core.messages import Call

SIDE = 32


class Net(nn.Module):
    """Two convolutions, a mean, and one linear layer: the closed form; with `deep` another linear layer: by autograd."""

    def __init__(self, channels: int, deep: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(channels)
        self.body = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)) if deep else nn.Linear(16, 4)
        for parameter in self.parameters():
            parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)

    def forward(self, pictures: Tensor) -> Tensor:
        """Scores `[N, 4]`."""
        scores: Tensor = self.head(self.body(pictures).mean((2, 3)))
        return scores


SETTINGS: dict[str, Any] = {"resize": SIDE, "crop": SIDE, "layers": ["body.3"]}


def face(channels: int, deep: bool = False, **settings: Any) -> camserve.Model:
    """The model of so many channels, tuned as in a worker."""
    return camserve.Model(Net(channels, deep), tune=True, **{**SETTINGS, "channels": channels, **settings})


def assert_exact(model: camserve.Model, tensor: Tensor, target: dict[str, Any], net: Net) -> None:
    """The answer's map and probability are those of float64."""
    wanted = exact(net, "body.3", tensor, target["target"])
    assert_close(unscaled(target["heatmap"], target["range"]), wanted.map, max(wanted.map_error, 1e-5))
    assert abs(target["probability"] - wanted.probabilities[target["target"]]) <= wanted.probability_error
    assert model.metadata["channels"] == len(tensor)


@pytest.mark.numeric
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("kind", ["grey", "deep grey", "colour", "x-ray"])
def test_a_grey_model_explains_pictures_of_any_kind(kind: str, deep: bool) -> None:
    """By the closed form and by autograd, of the pixels that grey is, also in the range of X-rays."""
    xray = {"scale": 2048, "mean": 1024} if kind == "x-ray" else {"mean": 0.5, "std": 0.25}
    model = face(1, deep, **xray)
    pixels: Any = noise(SIDE, SIDE)
    if kind != "colour":
        pixels = pixels[..., 0] if kind != "deep grey" else np.asarray(pixels[..., 0], np.uint16) * 251
    (reply,) = model.run([Call(True, {}, {"body": bytes(encoded(Image.fromarray(pixels)))})])
    answer = json.loads(reply.body)

    assert reply.status == 200
    grey = np.asarray(Image.fromarray(pixels).convert("L")) / 255 if kind != "deep grey" else pixels / 65535
    values = 2048 * grey - 1024 if kind == "x-ray" else (grey - 0.5) / 0.25
    assert answer["image"] == {"width": SIDE, "height": SIDE, "view": [0, 0, SIDE, SIDE]}
    assert_exact(model, torch.from_numpy(values.astype(np.float32))[None], answer["explanations"][0], Net(1, deep))


def test_an_overlay_is_drawn_on_the_grey_picture() -> None:
    """Without opacity it is the picture."""
    pixels = noise(SIDE, SIDE)[..., 0]
    call = Call(True, {"x-explain-opacity": "0", "accept": "image/png"}, {"body": bytes(encoded(Image.fromarray(pixels)))})
    (reply,) = face(1).run([call])
    drawn = np.asarray(Image.open(io.BytesIO(reply.body)))
    assert np.array_equal(drawn, np.repeat(pixels[..., None], 3, axis=2))


def tensor_of(channels: int) -> Tensor:
    """A tensor as a client makes it."""
    return torch.randn(channels, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


def npy(array: Any) -> bytes:
    """An `.npy` file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.numeric
@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("form", ["list", "data", "v1", "v2", "v2 binary", "npy", "npy in base64", "npy in a form", "model"])
def test_tensors_of_any_number_of_channels(channels: int, form: str) -> None:
    """In every form in which a tensor may come, the map of float64."""
    model, tensor = face(channels), tensor_of(channels)
    if form == "model":
        (explanation,) = model.explain(tensor)
        target = {**vars(explanation.targets[0])}
    else:
        headers, body = _request(form, tensor)
        (reply,) = model.run([Call(True, headers, {"data" if form.endswith("form") else "body": body})])
        assert reply.status == 200, reply.body
        answer = json.loads(reply.body)
        if form.startswith("v2"):
            outputs = {output["name"]: output["data"] for output in answer["outputs"] if "data" in output}
            target = {"target": outputs["target"][0], "range": outputs["range"], "probability": outputs["probability"][0]}
            target["heatmap"] = np.reshape(outputs["heatmap"], (8, 8))
        else:
            target = (answer["explanations"][0] if form == "v1" else answer)["explanations"][0]
    assert_exact(model, tensor, target, Net(channels))


def _request(form: str, tensor: Tensor) -> tuple[dict[str, str], bytes]:
    if form.startswith("npy"):
        file = npy(tensor.numpy())
        if form == "npy in base64":
            return {}, json.dumps({"data": base64.b64encode(file).decode()}).encode()
        return ({"content-type": "application/x-npy"} if form == "npy" else {}), file
    values, shape = tensor.tolist(), [1, *tensor.shape]
    head = {"name": "image", "datatype": "FP32", "shape": shape}
    if form == "v2 binary":
        tail = tensor.numpy().astype("<f4").tobytes()
        text = json.dumps({"inputs": [{**head, "parameters": {"binary_data_size": len(tail)}}]}).encode()
        return {"inference-header-content-length": str(len(text))}, text + tail
    bodies: dict[str, Any] = {
        "list": values,
        "data": {"data": values},
        "v1": {"instances": [{"data": values}]},
        "v2": {"inputs": [{**head, "data": [values]}]},
    }
    return {}, json.dumps(bodies[form]).encode()


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_tensor_of_another_number_of_channels_is_refused(channels: int) -> None:
    """The message says how many the model takes, in every form."""
    model = face(channels)
    for form in ("list", "v2"):
        headers, body = _request(form, tensor_of(4))
        (reply,) = model.run([Call(True, headers, {"body": body})])
        assert reply.status == 400
        assert json.loads(reply.body)["type"] == "InvalidTensor"
        assert str(channels) in json.loads(reply.body)["message"]


def test_a_picture_is_refused_where_only_tensors_are_taken() -> None:
    """Never read as something else."""
    model = face(5)
    (reply,) = model.run([Call(False, {}, {"body": bytes(encoded(noise()))})])
    assert reply.status == 400
    assert json.loads(reply.body)["message"] == (
        "data: this model takes tensors [5][H][W] alone, as JSON, in V2 or as an .npy file; got a picture"
    )
    with pytest.raises(RequestError, match="takes tensors"):
        model.explain(Image.fromarray(noise()))


def test_the_channels_are_those_of_a_preprocessing_of_ones_own() -> None:
    """It says them; a configuration that says others is refused."""

    def prepare(picture: Image.Image) -> Tensor:
        assert picture.mode == "RGB"
        values = torch.from_numpy(np.array(picture.convert("L").resize((SIDE, SIDE)), np.float32))
        return values[None] / 255

    model = camserve.Model(Net(1), preprocess=prepare, layers=["body.3"])
    assert model.served.config.channels == 1
    assert len(model.explain([noise(40, 50)[..., 0], np.zeros((9, 9), np.uint16)])) == 2
    with pytest.raises(ConfigError, match="channels: 3 was given, but the preprocessing makes 1"):
        camserve.Model(Net(1), preprocess=prepare, layers=["body.3"], channels=3)


def test_a_model_of_other_channels_than_configured_is_refused_with_the_key() -> None:
    """The message names the key that feeds it what it takes."""
    with pytest.raises(ConfigError, match=r"it takes 1 channel, and was given 3; channels: 1 \(--channels 1\) feeds it grey"):
        camserve.Model(Net(1), resize=SIDE, crop=SIDE)


@pytest.mark.parametrize(("channels", "settings"), [(1, {"scale": 2048.0, "mean": 1024.0}), (1, {}), (3, {})])
def test_trials_run_on_numbers_of_the_models_own_range(channels: int, settings: dict[str, Any]) -> None:
    """A model of X-rays is tried with hundreds, others as before; one picture has an eighth of the contrast."""
    seen: list[float] = []

    class Watching(Net):
        def forward(self, pictures: Tensor) -> Tensor:
            seen.append(float(pictures.detach().std()))
            return super().forward(pictures)

    camserve.Model(Watching(channels), **SETTINGS, channels=channels, **settings)
    assert all(0.05 < each / (0.225 * 2048 if settings else 1) < 1.5 for each in seen)
