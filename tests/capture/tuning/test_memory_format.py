"""The memory format: the fastest in which the model runs and answers as before, measured."""

from __future__ import annotations

import pytest
import torch
from tests.support.models import nets
from torch import Tensor, nn

from camserve.capture import open_backend, synthesize_pictures
from camserve.capture.tuning import memory_format as formats
from camserve.capture.tuning.memory_format import Trial, choose_memory_format
from camserve.capture.tuning.prepack import PrepackedConv
from camserve.core.config import Config
from camserve.core.errors import ConfigError

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
SIZE = (nets.SIDE, nets.SIDE)
PICTURES = synthesize_pictures(SIZE)
HAS_ONEDNN = torch.backends.mkldnn.is_available()
ONEDNN = pytest.mark.skipif(not HAS_ONEDNN, reason="this torch has no oneDNN")

EVEN = torch.full((2, 5), 0.2)


def trial(seconds: float, moved: float = 0, alone: float = 0) -> Trial:
    """A trial whose first probability is higher by `moved`, and by `alone` where the picture is alone."""
    together, single = EVEN.clone(), EVEN[:1].clone()
    together[:, 0] += moved
    single[:, 0] += alone
    return Trial(together, single, seconds)


def laid(model: nn.Module) -> str:
    """The format in which the model really is."""
    if "_conv_forward" in vars(model.get_submodule("stem.0")):
        return "prepacked"
    last = model.get_parameter("stem.0.weight").is_contiguous(memory_format=torch.channels_last)
    return "channels_last" if last else "contiguous"


CHOICES = {
    "faster": (trial(0.8), trial(0.79), "channels_last"),
    "hardly faster": (trial(0.95), trial(0.96), "contiguous"),
    "slower": (trial(2.0), trial(1.1), "contiguous"),
    "as equal as may be": (trial(0.5, 2e-6), trial(0.6), "channels_last"),
    "different": (trial(0.5, 8e-6), trial(1.0), "contiguous"),
    "different alone": (trial(0.5, 0, 8e-6), trial(1.0), "contiguous"),
    "prepacked": (trial(0.8), trial(0.7), "prepacked"),
    "only prepacked": (trial(2.0), trial(0.9), "prepacked"),
    "prepacked, hardly faster than channels_last": (trial(0.8), trial(0.78), "channels_last"),
    "prepacked, faster than what may be taken": (trial(0.5, 8e-6), trial(0.6), "prepacked"),
    "prepacked and different": (trial(0.8), trial(0.5, 8e-6), "channels_last"),
    "prepacked and different alone": (trial(0.8), trial(0.5, 0, 8e-6), "channels_last"),
}


@ONEDNN
@pytest.mark.parametrize(("channels_last", "prepacked", "chosen"), CHOICES.values(), ids=CHOICES)
def test_the_fastest_that_is_equal(monkeypatch: pytest.MonkeyPatch, channels_last: Trial, prepacked: Trial, chosen: str) -> None:
    """One has to be clearly faster than what is kept without it; a format with other probabilities is never taken."""
    model = nets.Pooled().eval().requires_grad_(requires_grad=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trials = iter([trial(1.0), channels_last, prepacked])
    monkeypatch.setattr(formats, "run_trial", lambda *_, **__: next(trials))
    assert choose_memory_format(model, PICTURES, None, may_prepack=True) == chosen
    assert laid(model) == chosen
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@ONEDNN
@pytest.mark.parametrize("recorded", ["contiguous", "channels_last", "prepacked"])
def test_a_recorded_format_is_taken_whatever_is_faster(monkeypatch: pytest.MonkeyPatch, recorded: str) -> None:
    """Nothing is measured: so all replicas of an archive run alike."""
    monkeypatch.setattr("camserve.capture.tuning.memory_format.time.perf_counter", None)
    model = nets.Pooled().eval().requires_grad_(requires_grad=False)
    assert choose_memory_format(model, PICTURES, None, True, recorded=recorded) == recorded
    assert laid(model) == recorded


@ONEDNN
def test_a_recorded_format_that_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Another processor's answers would differ; the model is served all the same."""
    trials = iter([trial(1.0), trial(0.1, 8e-6)])
    monkeypatch.setattr(formats, "run_trial", lambda *_, **__: next(trials))
    model = nets.Pooled().eval().requires_grad_(requires_grad=False)
    assert choose_memory_format(model, PICTURES, None, True, recorded="prepacked") == "channels_last"
    assert laid(model) == "channels_last"
    assert "prepacked was recorded" in caplog.text


def test_a_recorded_format_in_which_the_model_does_not_run_stops_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line names the key, as for one that is asked for."""

    def fail(*_: object, **__: object) -> Trial:
        raise RuntimeError("view size is not compatible")

    monkeypatch.setattr(formats, "run_trial", fail)
    with pytest.raises(ConfigError, match="memory_format: channels_last: the model does not run in this memory format"):
        choose_memory_format(nets.Pooled().eval(), PICTURES, None, recorded="channels_last")


def test_a_model_without_convolutions_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transformer has one, and would be timed for nothing."""
    monkeypatch.setattr(formats, "run_trial", None)
    assert choose_memory_format(nets.Tokens(), PICTURES, None, may_prepack=True) == "contiguous"


class Viewed(nn.Module):
    """The way older models flatten their map: `view` needs it contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(6 * nets.SIDE**2, 5)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 5]`."""
        x = self.stem(x)
        return self.fc(x.view(len(x), -1))


@pytest.mark.parametrize("tune", [False, True])
def test_a_format_in_which_the_model_does_not_run_is_not_taken(tune: bool) -> None:
    """It stays contiguous, and says so where channels_last was asked for."""
    model = Viewed().eval()
    expected = model(PICTURES)
    made = open_backend(model, Config(), SIZE, CPU, tune=tune)
    assert made.memory_format == laid(model) == "contiguous"
    assert torch.allclose(made.capture.forward(PICTURES, ["stem"]).logits, expected, atol=1e-6)
    with pytest.raises(ConfigError, match=r"^channels_last: true: the model does not run in this memory format: view size"):
        open_backend(model, Config(channels_last=True), SIZE, CPU, tune=tune)


@pytest.fixture
def quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for the clock: each format takes half as long as the one before."""
    seconds, own = [1.0], formats.run_trial

    def run_trial(model: nn.Module, pictures: Tensor, reader: object, **more: bool) -> Trial:
        seconds[0] /= 2
        found = own(model, pictures, reader, **more)  # type: ignore[arg-type]
        return Trial(found.scores, found.single, seconds[0])

    monkeypatch.setattr(formats, "run_trial", run_trial)


@ONEDNN
@pytest.mark.usefixtures("quicker")
@pytest.mark.parametrize("wanted", [None, True])
def test_an_operator_that_fails_leaves_torchs_own(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wanted: bool | None
) -> None:
    """Weights were reordered, and the operator that takes them is missing: the log says that convolutions run as torch has them."""
    caplog.set_level("INFO")

    def missing(*_: object) -> Tensor:
        raise AttributeError("no operator _convolution_pointwise")

    monkeypatch.setattr(PrepackedConv, "__call__", missing)
    model = nets.Pooled().eval().requires_grad_(requires_grad=False)
    assert choose_memory_format(model, PICTURES, wanted, may_prepack=True) == laid(model) == "channels_last"
    assert "not prepacked: no operator _convolution_pointwise" in caplog.text


@ONEDNN
@pytest.mark.usefixtures("quicker")
def test_the_arrangement_for_a_lone_picture_is_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions of one cell have one of their own."""
    own = PrepackedConv._reorder
    monkeypatch.setattr(PrepackedConv, "_reorder", lambda self, shape: own(self, shape) * (2 if shape[0] == 1 else 1))
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert choose_memory_format(model.requires_grad_(requires_grad=False), PICTURES, None, may_prepack=True) == "channels_last"


@pytest.mark.usefixtures("quicker")
@pytest.mark.parametrize(
    "keys", [{"channels_last": False}, {"precision": "bfloat16"}], ids=["contiguous as asked", "half precision"]
)
def test_what_was_asked_for_comes_first(keys: dict[str, object]) -> None:
    """A memory format that is given, or another precision: nothing is prepacked."""
    made = open_backend(nets.Pooled().eval(), Config(**keys), SIZE, CPU, tune=True)  # type: ignore[arg-type]
    assert made.memory_format != "prepacked"


@pytest.mark.usefixtures("quicker")
@pytest.mark.parametrize("compiled", [False, pytest.param(True, id="compiled")])
def test_only_what_runs_as_it_is_is_prepacked(compiled: bool) -> None:
    """Not what a compiler has taken apart; and nothing where nobody asks to tune."""
    model: nn.Module = nets.Pooled().eval()
    model = torch.compile(model, backend="eager") if compiled else model  # type: ignore[assignment]
    for tune in (False, True):
        made = open_backend(model, Config(), SIZE, CPU, tune=tune)
        assert (made.memory_format == "prepacked") is (tune and not compiled and HAS_ONEDNN)


def test_timing_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most five passes beside the first of each size; a slow model is run once more."""
    passes: list[int] = []

    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            passes.append(len(x))
            return x.flatten(1)[:, :5]

    monkeypatch.setattr(formats, "BUDGET", 1e9)
    found = formats.run_trial(Counted(), PICTURES)
    assert passes == [1, *[len(PICTURES)] * 6]
    assert torch.equal(found.single, found.scores[:1])
    passes.clear()
    monkeypatch.setattr(formats, "BUDGET", 0)
    formats.run_trial(Counted(), PICTURES)
    assert passes == [1, *[len(PICTURES)] * 2]
