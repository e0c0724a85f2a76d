"""Reads the outputs of one run of a model: as maps, with how they lie in memory, or as no maps, with the reason."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from camserve.capture.survey.layout import MAX_EXTRA_TOKENS, Grid, Layout, Order, find_layouts, find_tokens, guess_grid
from camserve.core.errors import ConfigError
from camserve.core.text import join_names

MAX_EXTRA_GIVEN = 64
"""Most extra tokens where the configuration gives the grid, and nothing else tells it."""

SAME = 1e-5
"""Tolerance between the moments of two equal maps, as a share of their root mean square: sums in another order differ."""

EVEN = 1e-4
"""Relative tolerance between the mean of attention weights and 1 / T: each row of T weights adds up to 1."""

ORDER_OF_CLASS: Mapping[str, Order] = {
    **dict.fromkeys(("Conv2d", "ConvTranspose2d", "BatchNorm2d", "InstanceNorm2d", "GroupNorm", "LayerNorm2d"), "nchw"),
    **dict.fromkeys(("MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d", "AdaptiveMaxPool2d"), "nchw"),
    **dict.fromkeys(("Linear", "LayerNorm"), "nhwc"),
}
"""Classes of modules whose maps have their channels always first, or always last."""

ATTENTION = "it holds the attention between tokens"
UNKNOWN_ORDER = "nothing tells whether its channels come first or last"
UNKNOWN_GRID = "token_grid says how its tokens lie"


@dataclass(frozen=True)
class Moments:
    """A summary of an activation that does not depend on the order of its values.

    Attributes:
        negative: whether some value is negative.
        mean: of the values.
        square: mean of their squares.
        absolute: mean of their magnitudes; normalisation gives every activation the same mean and mean square, but not this.
    """

    negative: bool
    mean: float
    square: float
    absolute: float

    @classmethod
    def of(cls, values: Tensor) -> Moments:
        """Summarise a tensor of any shape and floating type."""
        values = values.detach().float()
        square, absolute = float(values.square().mean()), float(values.abs().mean())
        mean = float(values.mean())
        return cls(bool((values < 0).any()), mean, square, absolute)

    def match(self, other: Moments) -> bool:
        """Return whether both can be of the same values, in any order."""
        scale = math.sqrt(max(self.square, other.square))
        means = abs(self.mean - other.mean), abs(self.absolute - other.absolute)
        return max(means) <= SAME * scale and abs(self.square - other.square) <= SAME * scale**2


@dataclass(frozen=True)
class Output:
    """What one call of a layer gave.

    Attributes:
        name: the layer's.
        kind: the name of its module's class.
        shape: None for what is no tensor.
        moments: None for what holds no floating values.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None
    moments: Moments | None


@dataclass(frozen=True)
class Reading:
    """What an output is.

    Attributes:
        layout: of the map; None: it is none.
        fault: why it is none, where it looks like one.
    """

    layout: Layout | None
    fault: str = ""


class Readings:
    """Reads the outputs of one run together: what one of them is, others tell.

    Args:
        outputs: of all calls, in the order in which they finished.
        batch: number of pictures.
        picture: their (height, width).
        token_grid: (rows, columns) of a transformer's tokens, or (rows, columns, others before), where the configuration has it.
        orders: the orders of ambiguous outputs, by their places, as far as another run told them.
        usual: the order of all maps of this model, where it is known.

    Attributes:
        all: the reading of each output.
        ambiguous: the places of the outputs that may have their channels first or last.
        token_grid_fits: whether `token_grid` fits some output.
    """

    def __init__(
        self,
        outputs: Sequence[Output],
        batch: int,
        picture: tuple[int, int],
        token_grid: tuple[int, ...] | None = None,
        *,
        orders: Mapping[int, Order] | None = None,
        usual: Order | None = None,
    ) -> None:
        self._picture = picture
        self._given = (token_grid[0], token_grid[1]) if token_grid else None
        self._before = token_grid[2] if token_grid and len(token_grid) > 2 else None
        self.token_grid_fits = False
        shapes = [output.shape if output.shape and output.moments else () for output in outputs]
        self._tokens = [find_tokens(shape, batch) for shape in shapes]
        possible = [find_layouts(shape, batch, picture) for shape in shapes]
        counts = {tokens[1] for tokens in self._tokens if tokens}
        counts |= {layout.height * layout.width for layouts in possible for layout in layouts}
        attention = {place for place, output in enumerate(outputs) if self._attends(place, output, possible[place], counts)}
        for place in attention:
            possible[place] = ()
        self.ambiguous = [place for place, layouts in enumerate(possible) if len(layouts) > 1]
        maps = _choose_layouts(outputs, possible, dict(orders or {}), usual)
        self._maps = [(place, layout.height, layout.width) for place, layout in enumerate(maps) if layout]
        self.all = [
            Reading(layout, ATTENTION if place in attention else UNKNOWN_ORDER if possible[place] and not layout else "")
            if tokens is None
            else self._read_tokens(place, *tokens)
            for place, (layout, tokens) in enumerate(zip(maps, self._tokens, strict=True))
        ]

    def _attends(self, place: int, output: Output, layouts: Sequence[Layout], counts: set[int]) -> bool:
        """Return whether an output is part of attention between T tokens (`[N, heads, T, T]` or `[N, heads, T, C]`), and no map.

        It is where a side of the map would be T, the number of tokens in the output before it; or where the rows of a square
        add up to 1, and another output has as many cells or tokens (`counts`).
        """
        before = next((tokens[1] for tokens in self._tokens[place::-1] if tokens and tokens[2] > 1), 0)
        sides = {side for each in layouts for side in (each.height, each.width)} - {1}
        if before in sides:
            return True
        shape, moments = output.shape, output.moments
        if not sides or not shape or not moments or shape[2] != shape[3] or shape[3] not in counts:
            return False
        return not moments.negative and abs(moments.mean * shape[3] - 1) <= EVEN

    def _read_tokens(self, place: int, order: Order, tokens: int, channels: int) -> Reading:
        grid = self._grid(place, tokens)
        if grid is None:
            return Reading(None, UNKNOWN_GRID if tokens > MAX_EXTRA_TOKENS and channels > 1 else "")
        extra = grid[2] if self._before is None or grid[:2] != self._given else self._before
        return Reading(Layout(order, grid[0], grid[1], channels, extra, grid[2] - extra))

    def _grid(self, place: int, tokens: int) -> Grid | None:
        """Return the grid of tokens: as configured, of a map of this run with as many cells, or as the picture's size tells."""
        of_map, guessed = self._grid_of_map(place, tokens), guess_grid(tokens, self._picture)
        inferred = of_map if of_map and not (guessed and guessed[2] < of_map[2]) else guessed
        if self._given is not None:
            height, width = self._given
            extra = tokens - height * width
            extra = extra if extra >= (self._before or 0) else -1
            likely = extra <= MAX_EXTRA_TOKENS or (extra <= MAX_EXTRA_GIVEN and inferred is None)
            contradicted = of_map is not None and of_map[2] <= extra and of_map[:2] != self._given
            if extra >= 0 and likely and not contradicted:
                self.token_grid_fits = True
                return height, width, extra
        return inferred

    def _grid_of_map(self, place: int, tokens: int) -> Grid | None:
        """Return the grid of a map with as many cells, or up to 8 fewer: the nearest before the tokens, or the first behind."""
        before = [each for each in reversed(self._maps) if each[0] < place]
        for maps in (before, [each for each in self._maps if each[0] > place]):
            grids = [(h, w, tokens - h * w) for _, h, w in maps if h * w > 1 and 0 <= tokens - h * w <= MAX_EXTRA_TOKENS]
            if grids:
                return min(grids, key=lambda grid: grid[2])
        return None

    def check_token_grid(self) -> None:
        """Refuse a `token_grid` that fits no layer.

        Raises:
            ConfigError: it fits none; the message lists the numbers of tokens.
        """
        if self._given is None or self.token_grid_fits:
            return
        height, width = self._given
        grids = {
            tokens[1]: reading.layout for tokens, reading in zip(self._tokens, self.all, strict=True) if tokens and tokens[1] > 1
        }
        before = f" and {self._before} before them" if self._before else ""
        numbers = join_names((f"{count} ({_describe(layout)})" for count, layout in grids.items()), limit=6)
        present = f"the numbers of tokens are {numbers}" if numbers else "no layer gives tokens"
        raise ConfigError(f"token_grid: {height}x{width} = {height * width} tokens{before} fit no layer of this model: {present}")


def _describe(layout: Layout | None) -> str:
    if layout is None:
        return "whose grid cannot be told"
    return f"{layout.height}x{layout.width}" + (f" and {layout.others} more" if layout.others else "")


def _choose_layouts(
    outputs: Sequence[Output], possible: Sequence[tuple[Layout, ...]], orders: dict[int, Order], usual: Order | None
) -> list[Layout | None]:
    """Return the layout of each output, of two possible ones the right one; None for what is no map, or where it is not known.

    Which one is right another run tells, or else the module's class, the model's usual order, or that all other maps have their
    channels at the same end.
    """
    for place, layouts in enumerate(possible):
        if len(layouts) > 1 and place not in orders and outputs[place].kind in ORDER_OF_CLASS:
            orders[place] = ORDER_OF_CLASS[outputs[place].kind]
    known = {layouts[0].order for layouts in possible if len(layouts) == 1} | set(orders.values())
    common = usual or (known.pop() if len(known) == 1 else None)
    return [
        next((each for each in layouts if len(layouts) == 1 or each.order == orders.get(place, common)), None)
        for place, layouts in enumerate(possible)
    ]


def infer_orders(
    outputs: Sequence[Output], ambiguous: Sequence[int], others: Sequence[Output], batch: int, picture: tuple[int, int]
) -> Iterator[tuple[int, Order]]:
    """Infer the orders of ambiguous outputs from a run with pictures of another size: cells change with it, channels do not.

    Args:
        outputs: of the first run.
        ambiguous: places of the outputs in question.
        others: outputs of the second run, as far as it came.
        batch: number of pictures, in both runs.
        picture: (height, width) of the second run's pictures.

    Yields:
        The place and the order of each output of which the second run tells it.
    """
    for place in ambiguous:
        shape = outputs[place].shape
        other = others[place] if place < len(others) else None
        if shape is None or other is None or other.shape is None or other.name != outputs[place].name:
            continue
        for layout in find_layouts(other.shape, batch, picture):
            channel, *cells = (1, 2, 3) if layout.order == "nchw" else (3, 1, 2)
            if other.shape[channel] == shape[channel] and all(other.shape[axis] != shape[axis] for axis in cells):
                yield place, layout.order
