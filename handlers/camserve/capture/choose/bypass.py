"""How much of the scores goes past a layer, by trial: its output is held fixed while the picture changes.

A map can show only what passes through its layer. Behind a ResNet's last block nothing else reaches the scores; past one of four
concatenated branches, a gate, or a transformer's last value projection most of them goes.

A map shows cells. Tokens beside them (a class token, registers) carry on what they have gathered before, at every layer alike,
and no map of cells shows that. So it counts against no layer, and is measured by itself (`BypassTrial.measure_beside`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from camserve.capture.base import Captured, Classifier
from camserve.capture.choose.gradients import measure_gradient_error, spread_targets
from camserve.capture.models.passes import fit_batch
from camserve.capture.precision import disable_tf32
from camserve.capture.survey.layers import MODEL_ERRORS, LayerInfo, Site

MAX_BYPASS = 0.1
"""Largest share of the scores' change that may go past a layer which is to be the default."""

UNCHANGED = 1e-6
"""The scores of two pictures count as the same up to this share of the largest: then nothing can be measured."""

ALIKE = 1e-4
"""Two gradients count as parallel if the cosine between them falls short of 1 by no more: half precision rounds by so much."""

CANCELLED = 1e-2
"""Sums smaller than so many times the sum of their terms' sizes are too near to float32's rounding of these (1e-6) to be read."""


def describe_share(share: float) -> str:
    """Say in words how much goes past a layer, for a sentence that names the layer behind them."""
    return f"{min(share, 1):.0%} of what changes the scores goes"


class BypassTrial:
    """Measures what goes past the layers of a model, and keeps what was found of each, so that no pass is run twice.

    Args:
        model: the model.
        pictures: `[N, C, H, W]`, of which each, and the first upside down, is changed into the next.
        maps: the layers of the model that have a map, in the order in which they ran.

    Attributes:
        faults: what speaks against explaining a layer, as far as that was tried; "" where nothing does.
    """

    def __init__(self, model: Classifier, pictures: Tensor, maps: Sequence[LayerInfo]) -> None:
        self._model = model
        self._maps = maps
        pictures = torch.cat([pictures, pictures[:1].flip(2, 3)])
        self._held = fit_batch(pictures, model.batch)
        self._changed = fit_batch(pictures.roll(1, 0), model.batch)
        self._scores: Tensor | None = None
        self._shares: dict[str, float | None] = {}
        self._passed: dict[str, tuple[Tensor, list[Tensor], list[Tensor]]] = {}
        self._depending: dict[str, bool] = {}
        self._captured: Captured | None = None
        self._names: tuple[str, ...] = ()
        self.faults: dict[str, str] = {}

    def measure(self, info: LayerInfo) -> float | None:
        """Return the bypass of a layer: 0 where all passes through it, about 1 where nothing does; None: not known.

        Its output is held at what one picture gives, while the model sees another. The root mean square of what then still
        changes in the scores, over that of what changes without holding anything, is the layer's bypass. Where something goes
        past, and the layer has tokens beside its cells, these are held in all layers before it too, for both: where then nothing
        goes past, all that the cells change passes through them, and that is the layer's bypass.
        """
        if info.name not in self._shares:
            with disable_tf32():
                share = self._share(info)
                past_cells = self._share_past_cells(info) if (share or 0) > MAX_BYPASS else None
            self._shares[info.name] = share if past_cells is None or past_cells > MAX_BYPASS else past_cells
        return self._shares[info.name]

    def measure_beside(self, site: Site) -> float | None:
        """Return how much of the scores the tokens beside a layer's cells carry past it, which no map shows; None: not known.

        Its cells are held at what one picture gives, while the model, and these tokens with it, sees another.

        Args:
            site: where the layer's cells lie, as a trial has found.
        """
        if site.views or not site.layout.others:
            return None
        with disable_tf32():
            try:
                if site.layer not in self._passed:
                    self._run_both([site.layer])
                fixed, held, changed = self._passed[site.layer]
                mixed = site.layout.mix(held[-1], changed[-1])
                return self._compare(fixed, self._model.run_with(site, self._changed, mixed))
            except MODEL_ERRORS:
                return None

    def measure_together(self, infos: Sequence[LayerInfo]) -> float | None:
        """Return what goes past several layers, of which none goes into another; None: it cannot be measured."""
        if len(infos) == 1:
            return self.measure(infos[0])
        name = " + ".join(sorted(info.name for info in infos))
        if name not in self._shares:
            with disable_tf32():
                self._shares[name] = self._share_together({info.name: info.site for info in infos})
        return self._shares[name]

    def depends_on_class(self, info: LayerInfo) -> bool:
        """Return whether the map of one class can differ from another's: not where all gradients are parallel.

        They are where all that is behind the layer passes through a single number.
        """
        if info.name not in self._depending:
            self._depending[info.name] = self._depends(info)
        return self._depending[info.name]

    def _depends(self, info: LayerInfo) -> bool:
        captured = self._capture(info)
        if captured is None:
            return True
        targets = spread_targets(captured.logits[0])
        row = torch.zeros_like(targets[:1])
        try:
            found = [captured.gradients(info.name, row, target[None]).double().flatten() for target in targets]
        except RuntimeError:  # it has no gradient, as where only the closed form explains it
            return True
        directions = [each / each.norm() for each in found if each.norm() > 0]
        return len(directions) < 2 or any(float(directions[0] @ each) < 1 - ALIKE for each in directions[1:])

    def measure_gradient_error(self, names: Collection[str]) -> float:
        """Return how far gradients are at most, for one of these layers, from how the scores follow it."""
        infos = [info for info in self._maps if info.name in names]
        passes = [(info, self._capture(info)) for info in infos]
        return max(
            (measure_gradient_error(self._model, info.site, self._held, each) for info, each in passes if each), default=0.0
        )

    def cancels(self, info: LayerInfo) -> bool:
        """Return whether activation times gradient adds up to hardly anything over the channels, in every cell.

        It does where a norm over the channels is all that reads a cell: the scores do not change with the cell's scale, so that
        `sum_k g_k A_k = 0` (Euler's theorem for homogeneous functions). What is left is the norm's epsilon, and rounding.
        """
        captured = self._capture(info)
        if captured is None:
            return False
        targets = captured.logits.argmax(1)
        try:
            gradients = captured.gradients(info.name, torch.arange(len(targets)), targets).double()
        except RuntimeError:
            return False
        products = gradients * captured.activation(info.name).double()
        return bool(products.sum(1).abs().max() < CANCELLED * products.abs().sum(1).max())

    def bypassed(self) -> list[str]:
        """Return the names of the measured layers that more goes past than may go past a default."""
        return [name for name, share in self._shares.items() if (share or 0) > MAX_BYPASS]

    def capture(self, infos: Sequence[LayerInfo]) -> Captured | None:
        """Run the model once for several layers, and keep what they give until others are asked for; None: it does not run so."""
        sites = {info.name: info.site for info in infos}
        self._captured, self._names = None, ()
        try:
            self._captured = self._model.capture(sites).forward(self._held, sites)
        except MODEL_ERRORS:
            return None
        self._names = tuple(sites)
        return self._captured

    def _capture(self, info: LayerInfo) -> Captured | None:
        return self._captured if info.name in self._names else self.capture([info])

    def _share_past_cells(self, info: LayerInfo) -> float | None:
        """Return how much of what a layer's cells, and no tokens beside them, change goes past it; None: that is not known."""
        before, captured = self._list_before(info), self._capture(info)
        output = captured and captured.output(info.name)
        if not before or captured is None or not isinstance(output, Tensor):
            return None
        given: dict[tuple[str, int], Tensor] = {}
        try:
            fresh = [each.name for each in before if each.name not in self._passed]
            if fresh:
                self._run_both([info.name, *fresh])
            for each in before:
                _, held, changed = self._passed[each.name]
                pairs = zip(changed, held, strict=True)
                given |= {(each.name, call): each.site.layout.mix(*pair) for call, pair in enumerate(pairs)}
            moved, _ = self._model.run_calls((), self._changed, given)
            given[info.name, info.calls - 1] = output
            remaining, _ = self._model.run_calls((), self._changed, given)
        except MODEL_ERRORS:
            return None
        return _relate(captured.logits, remaining, moved)

    def _run_both(self, names: Sequence[str]) -> None:
        """Keep what each call of these layers gives of the held and of the changed pictures.

        Layers are tried from the last on, so that those before an earlier one are mostly kept already.
        """
        fixed, held = self._model.run_calls(names, self._held)
        _, changed = self._model.run_calls(names, self._changed)
        self._passed |= {name: (fixed, held[name], changed[name]) for name in names}

    def _list_before(self, info: LayerInfo) -> list[LayerInfo]:
        """List the layers before this one that pass on tokens beside cells as it has, those inside another of them left out.

        All that these tokens have gathered went through one of them, also where a network adds it up outside of its modules.
        """
        if info.views or not info.site.layout.others or info not in self._maps:
            return []
        alike = [each for each in self._maps[: self._maps.index(info)] if _lie_alike(each, info)]
        outside = [each for each in alike if not each.name.startswith(f"{info.name}.")]
        return [each for each in outside if not any(each.name.startswith(f"{other.name}.") for other in outside)]

    def _share(self, info: LayerInfo) -> float | None:
        captured = self._capture(info)
        if captured is None:
            return None
        try:
            held = self._model.run_with(info.site, self._changed, captured.output(info.name))
        except MODEL_ERRORS:
            return None
        return self._compare(captured.logits, held)

    def _share_together(self, sites: Mapping[str, Site]) -> float | None:
        try:
            captured = self._model.capture(sites).forward(self._held, list(sites))
            given: dict[tuple[str, int], Tensor] = {}
            for name, site in sites.items():
                output = captured.output(name)
                calls = [output] if isinstance(output, Tensor) else output
                given |= {(name, call - 1): values for call, values in zip(site.keys, calls, strict=True)}
            held, _ = self._model.run_calls((), self._changed, given)
        except MODEL_ERRORS:
            return None
        return self._compare(captured.logits, held)

    def _compare(self, fixed: Tensor, held: Tensor) -> float | None:
        """Return how far the scores `held` are from the held picture's, `fixed`, as a share of how far the changed one's are."""
        try:
            if self._scores is None:
                self._scores = self._model.capture({}).forward(self._changed, ()).logits
        except MODEL_ERRORS:
            return None
        return _relate(fixed, held, self._scores)


def _relate(fixed: Tensor, held: Tensor, changed: Tensor) -> float | None:
    """Return how far `held` is from `fixed` as a share of how far `changed` is; None where that is nothing."""
    fixed = fixed.double()
    change, remains = (changed.double() - fixed).norm(), (held.double() - fixed).norm()
    if not torch.isfinite(change + remains) or change <= UNCHANGED * fixed.norm():
        return None
    return float(remains / change)


def _lie_alike(one: LayerInfo, other: LayerInfo) -> bool:
    """Return whether two layers have as many cells and tokens beside them, in the same places."""
    return replace(one.site.layout, channels=0) == replace(other.site.layout, channels=0)
