"""What the rule says of layers whose gradient is missing, reaches a single row, or belongs to no map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.support.models import nets
from tests.support.models.surveys import default_layer, survey
from torch import Tensor, nn
from torchvision.models import SwinTransformer

from camserve.capture import Backend, open_backend, synthesize_pictures
from camserve.capture.choose.layer import INDEPENDENT, ONE_ROW, OVERWRITTEN, SCORES, find_faults
from camserve.capture.models.kinds import open_model
from camserve.core.config import Config
from camserve.core.errors import ConfigError

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
SIZE = (nets.SIDE, nets.SIDE)
PICTURES = synthesize_pictures(SIZE)


def opened_at(model: nn.Module, size: tuple[int, int], *layers: str, **keys: Any) -> Backend:
    """A backend; nothing is timed."""
    return open_backend(model.eval(), Config(layers=layers, channels_last=False, **keys), size, CPU)


class Headed(nn.Module):
    """A trunk to `[N, 6, 8, 8]`, and a head that is a function of the module and the map."""

    def __init__(self, head: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), nn.ReLU())
        self.fc = nn.Linear(6, 5)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 5]`."""
        return self.head(self, self.trunk(x))


@pytest.mark.parametrize(("size", "side"), [(224, 16), (224, 32), (256, 32), (160, 16)])
def test_no_attention_matrix_is_the_layer(size: int, side: int) -> None:
    """A vision transformer as many write it: the layer is the last norm that reads the cells, and attention is refused."""
    torch.manual_seed(0)
    model = nets.Attending(side=side)
    made = opened_at(model, (size, size))
    cells = size // side
    assert made.layers == ("layers.1.norm",)
    assert f"8 channels, {cells}x{cells} cells" in made.why
    tokens = cells**2 + 1
    message = rf"layers\.1\.attend has no spatial map: .*\[2, 2, {tokens}, {tokens}\] \(it holds the attention between tokens\)"
    with pytest.raises(ConfigError, match=message):
        opened_at(model, (size, size), "layers.1.attend")


@pytest.mark.parametrize("line", [lambda m, x: m.fc(x[:, :, 0].mean(2)), lambda m, x: m.fc(x[..., 0].mean(2))])
def test_a_single_row_or_column_is_no_map(line: Callable[[Any, Tensor], Tensor]) -> None:
    """As where a class token's attention looks like a map; asked for, it is refused."""
    model = Headed(line)
    classifier = open_model(model, PICTURES)
    infos = [classifier.survey(PICTURES).info("trunk")]
    assert find_faults(classifier, PICTURES, infos, 5) == {"trunk": ONE_ROW}
    with pytest.raises(ConfigError, match=r"^layer trunk cannot be explained: .* a single row of its map"):
        opened_at(model, SIZE, "trunk")


def test_a_map_that_has_one_row_is_one() -> None:
    """A strip of eight cells, all of which count."""
    model = Headed(lambda m, x: m.fc(x.mean((2, 3)).relu()))
    assert opened_at(model, (4, 32)).layers == ("trunk",)


class Detached(nn.Module):
    """A head behind a detached map."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), nn.ReLU())
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 5]`."""
        return self.fc(self.trunk(x).detach().mean((2, 3)))


class Inferred(Detached):
    """The whole forward in inference mode."""

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 5]`."""
        return self.fc(self.trunk(x).mean((2, 3)))


@pytest.mark.parametrize(("made", "kind"), [(Inferred, "eager"), (Detached, "eager"), (Detached, "script")])
def test_where_the_head_has_a_closed_form_no_gradient_is_needed(made: Callable[[], Any], kind: str) -> None:
    """It is tried before a layer is refused for want of a gradient."""
    torch.manual_seed(0)
    model = made().eval()
    backend = opened_at(nets.stored(model, kind, PICTURES), SIZE)  # type: ignore[arg-type]
    assert (backend.layers, backend.closed_form) == (("trunk",), ("trunk",))
    captured = backend.capture.forward(PICTURES, ["trunk"])
    found = captured.gradients("trunk", torch.arange(2), torch.tensor([1, 4]))
    assert torch.allclose(found[:, :, 0, 0], model.fc.weight[[1, 4]] / 64)
    assert torch.allclose(captured.activation("trunk"), model.trunk(PICTURES))


def detached(module: Any, x: Tensor) -> Tensor:
    """A head that lets no gradient through."""
    return module.fc(x.detach().mean((2, 3)).relu())


def test_a_gradient_that_the_model_takes_away_is_named() -> None:
    """The layer matters, and only its gradient is missing: by rule, by name, and beside a layer that does not matter."""
    with pytest.raises(
        ConfigError, match=r"no layer that can be explained; of trunk, .* no gradient reaches it: .* or detaches it"
    ):
        opened_at(Headed(detached), SIZE)
    with pytest.raises(ConfigError, match=r"^layer trunk cannot be explained: the prediction depends on it, but no gradient"):
        opened_at(Headed(detached), SIZE, "trunk")
    with pytest.raises(ConfigError, match=r"no layer with a spatial map that its prediction depends on$"):
        opened_at(Headed(lambda m, x: m.fc(torch.ones(len(x), 6))), SIZE)


def test_a_gradient_whose_values_were_overwritten_is_named() -> None:
    """The sigmoid's derivative needs its output, which is changed in place: that is legal without gradients."""
    model = Headed(lambda m, x: m.fc(torch.sigmoid(x).mul_(2).mean((2, 3)).relu()))
    classifier = open_model(model, PICTURES)
    assert find_faults(classifier, PICTURES, [classifier.survey(PICTURES).info("trunk")], 5) == {"trunk": OVERWRITTEN}


def test_a_layer_that_cannot_be_taken_out_does_not_hide_the_others() -> None:
    """One whose number of calls changes with the number of pictures, among layers that run once."""

    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), nn.ReLU())
            self.act = nn.Hardtanh()  # twice gives what once does
            self.fc = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.trunk(x)
            for _ in range(len(x)):
                x = self.act(x)
            return self.fc(x.mean((2, 3)))

    model = Uneven().eval()
    classifier = open_model(model, PICTURES)
    found = classifier.survey(PICTURES)
    faults = find_faults(classifier, PICTURES, found.maps, 5)
    assert set(faults) == {"act"}
    assert faults["act"].startswith("the model does not run with it taken out (layer act ran 1 times")
    assert default_layer(model, PICTURES)[0] == "trunk"
    with pytest.raises(
        ConfigError, match=r"^layer act cannot be explained: the model does not run .*; the rule would take trunk$"
    ):
        opened_at(model, SIZE, "act")


def test_a_layer_of_class_scores_may_be_asked_for() -> None:
    """The rule would not take it, and that is no fault."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = open_model(model, PICTURES)
    assert find_faults(classifier, PICTURES, [classifier.survey(PICTURES).info("2")], 5) == {"2": SCORES}
    assert opened_at(model, SIZE, "2").layers == ("2",)


def test_an_unused_layer_is_still_named_so() -> None:
    """What has no gradient because nothing depends on it is told from what lost it."""
    model = Headed(lambda m, x: m.fc(x.mean((2, 3)).relu()))
    model.unused = nn.Conv2d(6, 6, 1)
    model.head = lambda m, x: (m.unused(x), m.fc(x.mean((2, 3)).relu()))[1]
    classifier = open_model(model, PICTURES)
    assert find_faults(classifier, PICTURES, classifier.survey(PICTURES).maps, 5) == {"unused": INDEPENDENT}
    with pytest.raises(ConfigError, match=r"^layer unused cannot be explained: the prediction does not depend on it; the rule"):
        opened_at(model, SIZE, "unused")


class Rows(nn.Module):
    """Patches of 8x4 pixels, some tokens of other things, and a layer over all of them."""

    def __init__(self, others: int = 0) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, (8, 4), (8, 4))
        self.stem = nn.Conv2d(3, 3, 3, 1, 1)
        self.others = nn.Parameter(torch.randn(1, others, 8))
        self.mix = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, 5]`."""
        x = self.embed(self.stem(x)).flatten(2).transpose(1, 2)
        x = torch.cat([self.others.expand(len(x), -1, -1), x], 1)
        return self.fc(self.mix(x).tanh().mean(1))


def test_tokens_left_out_for_want_of_a_grid_are_told_in_the_reason() -> None:
    """The rule falls back to what comes before them, and says so with the flag that helps."""
    made = opened_at(Rows(), SIZE)
    assert made.layers == ("stem",)
    assert "; but the 1 layers behind it that give tokens (as mix, [2, 32, 8]) were left out" in made.why
    assert made.why.endswith("--token-grid says it")
    assert opened_at(Rows(), SIZE, token_grid=(4, 8)).layers == ("mix",)


def test_extra_tokens_are_told_in_the_reason() -> None:
    """A class token is what one expects; twenty tokens before those of the picture are not."""
    assert opened_at(Rows(20), SIZE, token_grid=(4, 8)).why.endswith("8 channels, 4x8 cells beside 20 other tokens")
    assert opened_at(Rows(1), SIZE, token_grid=(4, 8)).why.endswith("8 channels, 4x8 cells")
    with pytest.raises(ConfigError, match=r"^token_grid: 4x8 = 32 tokens fit no layer of this model: .* are 97"):
        opened_at(Rows(65), SIZE, token_grid=(4, 8))


def test_a_token_grid_for_a_model_without_tokens_is_refused() -> None:
    """The key does nothing there."""
    with pytest.raises(ConfigError, match=r"^token_grid: 4x8 = 32 tokens fit no layer of this model: no layer gives tokens$"):
        opened_at(nets.Pooled(), SIZE, token_grid=(4, 8))


@pytest.mark.parametrize("kind", ["eager", "script", "trace"])
def test_channels_last_are_seen_where_there_are_as_many_as_cells(kind: str) -> None:
    """Swin's first stage: 16 rows, 16 columns, 16 channels, and a permutation among them."""
    torch.manual_seed(0)
    model = SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5).eval()
    pictures = synthesize_pictures((64, 64))
    held: Any = nets.stored(model, kind, pictures)
    orders = {info.name: info.layout.order for info in survey(held, pictures).layers if info.layout and "." in info.name}
    assert orders.pop("features.0.0") == "nchw"
    assert {order for name, order in orders.items() if name.startswith("features.")} == {"nhwc"}
    made = open_backend(held, Config(layers=("features.1",), channels_last=False), (64, 64), CPU)
    with torch.no_grad():
        expected = model.features[1](model.features[0](pictures)).permute(0, 3, 1, 2)
    assert torch.allclose(made.capture.forward(pictures, ["features.1"]).activation("features.1"), expected, atol=1e-5)


def test_a_program_of_one_size_says_what_cannot_be_told() -> None:
    """It runs with no other size: the class of the module decides, and what is left is refused with the reason."""
    torch.manual_seed(0)
    model = SwinTransformer([4, 4], 12, [2], [3], [4, 4], num_classes=5).eval()
    pictures = synthesize_pictures((48, 48))
    program = nets.stored(model, "exported for 2", pictures)
    orders = {info.name: info.layout.order for info in survey(program, pictures).layers if info.layout}
    assert (orders["features.0.0"], orders["features.1.0.norm1"]) == ("nchw", "nhwc")
    with pytest.raises(ConfigError, match=r"layer features\.1 has no spatial map: .* \(nothing tells whether its channels come"):
        open_backend(program, Config(layers=("features.1",)), (48, 48), CPU)


def test_where_all_that_is_left_is_doubtful_the_rule_says_so() -> None:
    """Eight by eight by eight, from functions, in a program that turns its maps: the message names the output."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(8, 3, 3, 3))
            self.act = nn.Tanh()
            self.fc = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.conv2d(x, self.kernel, None, 4, 1).permute(0, 2, 3, 1)
            return self.fc(self.act(x).mean((1, 2)))

    program = nets.stored(Turned().eval(), "exported for 2", PICTURES)
    with pytest.raises(
        ConfigError, match=r"depends on; of act, whose output has the shape \[2, 8, 8, 8\], nothing tells whether"
    ):
        open_backend(program, Config(), SIZE, CPU)
    assert opened_at(Turned(), SIZE).layers == ("act",)


@pytest.mark.parametrize("kind", ["eager", "script", "exported for 3"])
def test_plain_maps_with_as_many_channels_as_cells_have_their_channels_first(kind: str) -> None:
    """Eight channels and 8x8 cells, in a network that has nothing but maps of that order."""
    found = survey(nets.loaded("pooled", kind), nets.pictures(3))
    info = found.info("features")
    assert info.shape[1:] == (8, 8, 8)
    assert info.layout is not None
    assert info.layout.order == "nchw"
