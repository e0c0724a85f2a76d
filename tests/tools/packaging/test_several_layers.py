"""An archive whose layers are taken together: packaged, tried in a fresh process, and opened again."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tests.explain.test_refinecam import exact
from tests.support.build import noise
from tests.support.comparison.closeness import assert_close, unscaled
from tests.support.models.tiny import Tiny, package_model, state, write_model
from tests.support.processes.fork_server import ForkServer

from camserve.core.errors import ConfigError
from camserve.pipeline.model import Model
from camserve.tools.archive.archive import open_archive

METHOD = ["--method", "refinecam"]


@pytest.mark.numeric
def test_an_archive_multiplies_its_layers_maps(tmp_path: Path, fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is the formula's, by the layers and the method that the flags name."""
    fork_server.replace_fresh(monkeypatch)
    archive, text = package_model([*write_model(tmp_path), "--layers", "features", "features.0", *METHOD])
    assert "Layer features, features.0, as asked" in text
    with open_archive(archive) as opened:
        assert {"layers": ["features", "features.0"], "method": "refinecam"}.items() <= opened.config["explain"].items()
    model = Model.from_archive(archive)
    picture = Image.fromarray(noise(64, 64, 3))
    (found,) = model.explain(picture, target=1)
    module = Tiny()
    module.load_state_dict(state())
    assert (found.layer, found.method) == ("features.0,features", "refinecam")
    prepared = model.preprocess(picture)
    assert_close(unscaled(found.heatmap, found.range), exact(module.eval(), ("features.0", "features"), prepared, 1), 1e-4)


def test_one_layer_is_not_enough(tmp_path: Path) -> None:
    """Packaging says so before it makes anything."""
    with pytest.raises(ConfigError, match="method: refinecam takes two layers or more together, got features; give layers"):
        package_model([*write_model(tmp_path), *METHOD])
    assert not list(tmp_path.glob("*.mar"))
