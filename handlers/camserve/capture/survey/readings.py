"""What the outputs of one run through a model are: maps, and how they lie in memory, or no maps, and why not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from camserve.capture.survey.layout import MAX_EXTRA_TOKENS, Grid, Layout, Order, find_layouts, find_tokens, guess_grid
from camserve.core.errors import ConfigError
from camserve.core.text import listed

MAX_EXTRA_GIVEN = 64
"""Most extra tokens where the configuration says what the grid is, and nothing else does."""

SAME = 1e-5
"""How far the moments of two equal maps may be apart, as a share of their root mean square: sums in another order differ."""

EVEN = 1e-4
"""How far the mean of attention weights may be from 1 / T, as a share of it: each row of T adds up to 1."""

ORDER_OF_CLASS: Mapping[str, Order] = {
    **dict.fromkeys(("Conv2d", "ConvTranspose2d", "BatchNorm2d", "InstanceNorm2d", "GroupNorm", "LayerNorm2d"), "nchw"),
    **dict.fromkeys(("MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d", "AdaptiveMaxPool2d"), "nchw"),
    **dict.fromkeys(("Linear", "LayerNorm"), "nhwc"),
}
"""Classes of modules whose maps always have their channels first, or always last."""

ATTENTION = "it holds the attention between tokens"
UNKNOWN_ORDER = "nothing tells whether its channels come first or last"
UNKNOWN_GRID = "token_grid says how its tokens lie"


@dataclass(frozen=True)
class Moments:
    """What is kept of an activation: whether some of it is negative, and three means that do not depend on its order.

    The third is there because normalisation gives every activation the same mean and mean square.
    """

    negative: bool
    mean: float
    square: float
    absolute: float

    @classmethod
    def of(cls, values: Tensor) -> Moments:
        """Of any tensor of a floating type."""
        values = values.detach().float()
        square, absolute = float(values.square().mean()), float(values.abs().mean())
        mean = float(values.mean())
        return cls(bool((values < 0).any()), mean, square, absolute)

    def like(self, other: Moments) -> bool:
        """Whether both can be of the same values, in any order."""
        scale = math.sqrt(max(self.square, other.square))
        means = abs(self.mean - other.mean), abs(self.absolute - other.absolute)
        return max(means) <= SAME * scale and abs(self.square - other.square) <= SAME * scale**2


@dataclass(frozen=True)
class Output:
    """What one call of a layer gave; `shape` is None for what is no tensor, `moments` for one that holds no floating values."""

    name: str
    kind: str
    shape: tuple[int, ...] | None
    moments: Moments | None


@dataclass(frozen=True)
class Reading:
    """An output as a map; without a layout it is none, and `fault` says why, where it looks like one."""

    layout: Layout | None
    fault: str = ""


class Readings:
    """Reads the outputs of one run, in the order in which the calls finished. What one of them is, others tell.

    Args:
        outputs: of all calls, of `batch` pictures of `picture` = (height, width).
        token_grid: (h, w) that the configuration gives for a transformer's tokens.
        orders: what another run told of outputs that can be read with their channels first as well as last, by their places.
        usual: the order of all maps of this model, where it is known.
    """

    def __init__(
        self,
        outputs: Sequence[Output],
        batch: int,
        picture: tuple[int, int],
        token_grid: tuple[int, int] | None = None,
        *,
        orders: Mapping[int, Order] | None = None,
        usual: Order | None = None,
    ) -> None:
        self._picture = picture
        self._given = token_grid
        self.token_grid_fits = False
        shapes = [output.shape if output.shape and output.moments else () for output in outputs]
        self._rows = [find_tokens(shape, batch) for shape in shapes]
        possible = [find_layouts(shape, batch, picture) for shape in shapes]
        counts = {row[1] for row in self._rows if row} | {each.height * each.width for readings in possible for each in readings}
        attention = {place for place, output in enumerate(outputs) if self._attends(place, output, possible[place], counts)}
        for place in attention:
            possible[place] = ()
        self.ambiguous = [place for place, readings in enumerate(possible) if len(readings) > 1]
        maps = _settled(outputs, possible, dict(orders or {}), usual)
        self._maps = [(place, layout.height, layout.width) for place, layout in enumerate(maps) if layout]
        self.all = [
            Reading(
                maps[place], ATTENTION if place in attention else UNKNOWN_ORDER if possible[place] and not maps[place] else ""
            )
            if row is None
            else self._tokens(place, *row)
            for place, row in enumerate(self._rows)
        ]

    def _attends(self, place: int, output: Output, readings: Sequence[Layout], counts: set[int]) -> bool:
        """Whether an output is a part of attention between T tokens (`[N, heads, T, T]`, or `[N, heads, T, C]`), and no map.

        It is where a side of the map would be T, the number of tokens in the output before it, or where the rows of a square
        add up to 1 and something has as many cells.
        """
        tokens = next((row[1] for row in self._rows[place::-1] if row and row[2] > 1), 0)
        sides = {side for each in readings for side in (each.height, each.width)} - {1}
        if tokens in sides:
            return True
        shape, moments = output.shape, output.moments
        if not sides or not shape or not moments or shape[2] != shape[3] or shape[3] not in counts:
            return False
        return not moments.negative and abs(moments.mean * shape[3] - 1) <= EVEN

    def _tokens(self, place: int, order: Order, tokens: int, channels: int) -> Reading:
        grid = self._grid(place, tokens)
        if grid is None:
            return Reading(None, UNKNOWN_GRID if tokens > MAX_EXTRA_TOKENS and channels > 1 else "")
        return Reading(Layout(order, grid[0], grid[1], channels, grid[2]))

    def _grid(self, place: int, tokens: int) -> Grid | None:
        """How a row of tokens lies: as given, as a map of this run with as many cells, or as the picture's size tells."""
        seen, guessed = self._seen_grid(place, tokens), guess_grid(tokens, self._picture)
        told = seen if seen and not (guessed and guessed[2] < seen[2]) else guessed
        if self._given is not None:
            height, width = self._given
            extra = tokens - height * width
            likely = extra <= MAX_EXTRA_TOKENS or (extra <= MAX_EXTRA_GIVEN and told is None)
            contradicted = seen is not None and seen[2] <= extra and seen[:2] != self._given
            if extra >= 0 and likely and not contradicted:
                self.token_grid_fits = True
                return height, width, extra
        return told

    def _seen_grid(self, place: int, tokens: int) -> Grid | None:
        """The grid of the map with as many cells, or up to 8 fewer: the nearest before the tokens, or the first behind them."""
        before = [each for each in reversed(self._maps) if each[0] < place]
        for maps in (before, [each for each in self._maps if each[0] > place]):
            grids = [(h, w, tokens - h * w) for _, h, w in maps if h * w > 1 and 0 <= tokens - h * w <= MAX_EXTRA_TOKENS]
            if grids:
                return min(grids, key=lambda grid: grid[2])
        return None

    def check_token_grid(self) -> None:
        """Refuses a `token_grid` that no layer takes.

        Raises:
            ConfigError: it says what was given, and how many tokens there are.
        """
        if self._given is None or self.token_grid_fits:
            return
        height, width = self._given
        grids = {row[1]: reading.layout for row, reading in zip(self._rows, self.all, strict=True) if row and row[1] > 1}
        numbers = listed((f"{count} ({_described(layout)})" for count, layout in grids.items()), limit=6)
        there = f"the numbers of tokens are {numbers}" if numbers else "no layer gives tokens"
        raise ConfigError(f"token_grid: {height}x{width} = {height * width} tokens fit no layer of this model: {there}")


def _described(layout: Layout | None) -> str:
    if layout is None:
        return "whose grid cannot be told"
    return f"{layout.height}x{layout.width}" + (f" and {layout.extra} more" if layout.extra else "")


def _settled(
    outputs: Sequence[Output], possible: Sequence[tuple[Layout, ...]], orders: dict[int, Order], usual: Order | None
) -> list[Layout | None]:
    """The maps among the outputs: of two readings the one that is known to be right; None where none is, or there is no map.

    It is known by another run, or else by the module's class, by what is usual in the model, or because every other map has its
    channels at the same end.
    """
    for place, readings in enumerate(possible):
        if len(readings) > 1 and place not in orders and outputs[place].kind in ORDER_OF_CLASS:
            orders[place] = ORDER_OF_CLASS[outputs[place].kind]
    known = {readings[0].order for readings in possible if len(readings) == 1} | set(orders.values())
    common = usual or (known.pop() if len(known) == 1 else None)
    return [
        next((each for each in readings if len(readings) == 1 or each.order == orders.get(place, common)), None)
        for place, readings in enumerate(possible)
    ]


def infer_orders(
    outputs: Sequence[Output], ambiguous: Sequence[int], others: Sequence[Output], batch: int, picture: tuple[int, int]
) -> Iterator[tuple[int, Order]]:
    """What a run with pictures of another size, `picture`, tells of outputs that can be read in two ways: cells change with
    the picture, channels do not.

    Args:
        others: what that run gave, as far as it came.
    """
    for place in ambiguous:
        shape = outputs[place].shape
        other = others[place] if place < len(others) else None
        if shape is None or other is None or other.shape is None or other.name != outputs[place].name:
            continue
        for reading in find_layouts(other.shape, batch, picture):
            channel, *cells = (1, 2, 3) if reading.order == "nchw" else (3, 1, 2)
            if other.shape[channel] == shape[channel] and all(other.shape[axis] != shape[axis] for axis in cells):
                yield place, reading.order
