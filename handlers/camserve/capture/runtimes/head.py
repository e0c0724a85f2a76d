"""The head of a model, run alone: what computes the layer is passed over, and its output is given."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from camserve.capture.runtimes.outputs import Place, copy_sharing
from camserve.capture.survey.layers import Site
from camserve.capture.survey.layout import extract_tensor, replace_tensor
from camserve.capture.survey.reader import OutputReader, Scores

Shape = tuple[tuple[int, int], ...]
"""Of each axis its length for one picture, and what each further picture adds."""


@dataclass(frozen=True)
class Skipped:
    """A call that ended before the layer's, in none that did: it need not run.

    Attributes:
        place: the module, and which of its calls in a whole pass.
        shape: of its output.
        dtype: of its output.
    """

    place: Place
    shape: Shape
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """How a runtime's output names what it gives."""
        return f"{self.place[0]} (before, call {self.place[1]})"

    def fill(self, count: int, device: torch.device) -> Tensor:
        """Make zeros of the output's shape for `count` pictures, which take no memory."""
        sides = [one + (count - 1) * more for one, more in self.shape]
        return torch.zeros((), dtype=self.dtype, device=device).expand(sides)


@dataclass
class _Call:
    """A call in a recorded pass: its module, its number, the call that it is in, and its output."""

    path: str
    number: int
    parent: _Call | None
    began: int
    output: Any = None

    def runs_in(self, opened: Sequence[_Call | None]) -> bool:
        """Return whether it is called by one of these, and not inside of another call."""
        return any(self.parent is each for each in opened)


@dataclass
class _Pass:
    """One pass of a head in one thread: what it is given, and how often each module was called."""

    given: Mapping[Place, Tensor]
    leaves: Mapping[str, Tensor]
    count: int
    device: torch.device
    calls: Counter[str] = field(default_factory=Counter)


class Head:
    """What is behind a layer, up to the scores, as a model that can be run and differentiated by itself.

    It is a copy of the model that shares its weights. The modules that ended before the layer did give zeros; those whose output
    is needed behind the layer all the same (a residual connection around it) are its `sides`, and are to be given too. Which
    these are, autograd tells. Whether the head is right, only comparing its scores with the model's does.

    Args:
        model: eager, in eval mode, with frozen parameters.
        site: the layer.
        pictures: `[N, C, H, W]`, N at least 2, to find out what comes before the layer.
        reader: how the scores are read.

    Raises:
        RuntimeError: the scores do not depend on the layer, or the model does not run like this.
    """

    def __init__(self, model: nn.Module, site: Site, pictures: Tensor, reader: OutputReader) -> None:
        self._model = copy_sharing(model)
        self._site = site
        self._reader = reader
        self._local = threading.local()
        plans, skipped = self._record(pictures)
        for path, plan in plans.items():
            module = self._model.get_submodule(path)
            module.forward = self._replace(path, module.forward, plan)
        self.sides = self._find_sides(skipped, pictures)

    def run(self, pictures: Tensor, outputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Scores]:
        """Run the head over what a runtime gave for the pictures `[N, C, H, W]`.

        Args:
            outputs: by their names the calls of the layer that are taken, and the `sides`, as the model lays them out.

        Returns:
            The leaves by the layer's keys, and the scores with the graph that goes back to them.
        """
        leaves = {key: outputs[key].detach().requires_grad_() for key in self._site.keys.values()}
        sides = {each.place: outputs[each.name] for each in self.sides}
        return leaves, self._run(pictures, leaves, sides)

    def _run(self, pictures: Tensor, leaves: Mapping[str, Tensor], given: Mapping[Place, Tensor]) -> Scores:
        self._local.current = _Pass(given, leaves, len(pictures), pictures.device)
        try:
            with torch.inference_mode(mode=False), torch.enable_grad(), self._reader.watch(len(pictures)) as watch:
                return self._reader.read(self._model(pictures), len(pictures), watch)
        finally:
            self._local.current = None

    def _replace(self, path: str, forward: Callable[..., Any], plan: Mapping[int, Skipped | str]) -> Callable[..., Any]:
        def replaced(*args: Any, **kwargs: Any) -> Any:
            current: _Pass = self._local.current
            number = current.calls[path]
            current.calls[path] += 1
            part = plan.get(number)
            if part is None:
                return forward(*args, **kwargs)
            if isinstance(part, str):
                return replace_tensor(self._structure, current.leaves[part].clone())
            value = current.given.get(part.place)
            return part.fill(current.count, current.device) if value is None else value.clone()

        return replaced

    def _record(self, pictures: Tensor) -> tuple[dict[str, dict[int, Skipped | str]], tuple[Skipped, ...]]:
        """Run the model over one picture and over two.

        Returns:
            What becomes of which call of a module in a pass of the head, and what of that is passed over.
        """
        (one, opened), (two, _) = (self._record_calls(pictures[:count]) for count in (1, 2))
        if [(call.path, call.number) for call in one] != [(call.path, call.number) for call in two]:
            raise RuntimeError("its modules run in another order with another number of pictures")
        plan: dict[str, dict[int, Skipped | str]] = {}
        seen: Counter[str] = Counter()
        for first, second in sorted(zip(one, two, strict=True), key=lambda pair: pair[0].began):
            if not first.runs_in(opened):
                continue
            if isinstance(first.output, Tensor) and isinstance(second.output, Tensor):
                plan.setdefault(first.path, {})[seen[first.path]] = _skip(first, first.output, second.output)
            else:
                opened.append(first)  # what is in it is passed over
            seen[first.path] += 1
        skipped = tuple(part for parts in plan.values() for part in parts.values() if isinstance(part, Skipped))
        hidden = min(self._site.keys) - 1 - seen[self._site.layer]
        plan.setdefault(self._site.layer, {}).update({call - 1 - hidden: key for call, key in self._site.keys.items()})
        return plan, skipped

    def _record_calls(self, pictures: Tensor) -> tuple[list[_Call], list[_Call | None]]:
        """Return the calls that ended before the layer's first that is taken, and those that were under way then."""
        stack: list[_Call | None] = [None]
        ended: list[_Call] = []
        opened: list[_Call | None] = []
        counts: Counter[str] = Counter()
        first = min(self._site.keys)

        def start(path: str) -> None:
            counts[path] += 1
            stack.append(_Call(path, counts[path], stack[-1], sum(counts.values())))

        def end(output: Any) -> Any:
            call = stack.pop()
            if call is None or opened:
                return None
            call.output = output
            if (call.path, call.number) == (self._site.layer, first):
                opened.extend(stack)
                self._structure = _strip(output)
                tensor = extract_tensor(output)
                return None if tensor is None else replace_tensor(output, tensor.detach().requires_grad_().clone())
            ended.append(call)
            return None

        with ExitStack() as handles, torch.enable_grad():
            for path, module in self._model.named_modules():
                if path:
                    pre = module.register_forward_pre_hook(lambda _module, _inputs, path=path: start(path))
                    post = module.register_forward_hook(lambda _module, _inputs, output: end(output))
                    handles.callback(pre.remove)
                    handles.callback(post.remove)
            self._model(pictures)
        if not opened:
            raise RuntimeError(f"layer {self._site.layer} did not run")
        return ended, opened

    def _find_sides(self, skipped: Sequence[Skipped], pictures: Tensor) -> tuple[Skipped, ...]:
        """Find, by autograd, the calls before the layer that the scores depend on past it."""
        filled = {each.place: each.fill(2, pictures.device).clone() for each in skipped}
        floating = [each for each in skipped if each.dtype.is_floating_point]
        for each in floating:
            filled[each.place].requires_grad_()
        shapes = _shapes(self._site)
        leaves = {key: torch.rand(shape, device=pictures.device).requires_grad_() for key, shape in shapes.items()}
        scores = self._run(pictures[:2], leaves, filled).logits
        if not scores.requires_grad:
            raise RuntimeError(f"the scores have no gradient with respect to layer {self._site.layer}")
        if not floating:
            return ()
        found = torch.autograd.grad(scores.sum(), [filled[each.place] for each in floating], allow_unused=True)
        return tuple(each for each, gradient in zip(floating, found, strict=True) if gradient is not None)


def _shapes(site: Site) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the layer's outputs that are taken, for two pictures, by their keys."""
    if not site.views:
        return {site.layer: site.layout.shape(2)}
    return {site.keys[view.call]: view.layout.shape(2) for view in site.views}


def _skip(call: _Call, one: Tensor, two: Tensor) -> Skipped:
    """Describe a call by its output for one picture and for two."""
    if one.ndim != two.ndim:
        raise RuntimeError(f"module {call.path} gives another number of axes with another number of pictures")
    return Skipped((call.path, call.number), tuple((a, b - a) for a, b in zip(one.shape, two.shape, strict=True)), one.dtype)


def _strip(output: Any) -> Any:
    """Return a module's output without its tensors, for `replace_tensor` to put one in."""
    if isinstance(output, (tuple, list)) and any(each is not None for each in output[1:]):
        raise RuntimeError("the layer gives more than one tensor")
    return None if isinstance(output, Tensor) else output
