"""How a model's outputs are made of each other: by their values, and by autograd's graph between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

SAME = 1e-4
"""Tolerance between an output and what another one makes of it, as a share of the largest value."""

ENOUGH = 12
"""So many values of one output in the order of another's are no chance."""

NEAR = 1e-2
"""The same of each value by itself, however small."""

Squash = Literal["", "sigmoid", "softmax", "either"]
"""Which probabilities an output may be of another one's logits: of labels, each by itself, of classes, or what is both."""

Link = Literal["", "fixed", "mixed", "weighed"]
"""How one output is made of another: not at all; by a function without weights, of nothing else; so, and of other things too; or
by the model's weights alone."""

WEIGHING = ("mm", "Mv", "Dot", "Linear", "onvolution", "Cdist", "EuclideanDist")
"""Parts of the names of what applies weights, in autograd's graph."""

PASSING = frozenset(
    {"View", "UnsafeView", "Reshape", "ReshapeAlias", "Squeeze", "Unsqueeze", "Alias", "Clone", "T", "Transpose", "Permute"}
    | {"ToCopy", "Select", "Slice", "Stack", "Mean", "Add", "Sub", "Mul", "Div", "Neg", "Softmax", "LogSoftmax", "Sigmoid"}
)
"""What leaves class scores class scores, so that what weighs may stand before it."""


def is_alike(one: Tensor, other: Tensor, scale: Tensor | None = None) -> bool:
    """Return whether values are the same, up to rounding."""
    scale = other.abs().max() if scale is None else scale
    return bool((one - other).abs().max() <= SAME * scale)


def find_squash(logits: Tensor, other: Tensor) -> Squash:
    """Find whether `other` are the probabilities that these logits make of classes, or their logarithms, or those of labels.

    Large logits make 0 and 1 of both: then those near 0 tell, in shares of themselves.
    """
    if logits.shape != other.shape or torch.equal(logits, other):
        return ""
    each, among = logits.sigmoid(), logits.softmax(1)
    if logits.shape[1] == 1:
        return "softmax" if is_alike(each, other) else ""
    if is_alike(logits.log_softmax(1), other):
        return "softmax"
    if not (is_alike(each, other) and is_alike(among, other)):
        return "sigmoid" if is_alike(each, other) else "softmax" if is_alike(among, other) else ""
    near = [_find_share(made, other) <= NEAR for made in (each, among)]
    return "either" if near[0] == near[1] else "sigmoid" if near[0] else "softmax"


def read_squash(output: Tensor | None) -> Squash:
    """Return which of both made an output, by autograd's name for it; "" where that does not say."""
    name = output.grad_fn.name() if output is not None and output.grad_fn is not None else ""
    return "sigmoid" if name.startswith("Sigmoid") else "softmax" if name.startswith("Softmax") else ""


def _find_share(one: Tensor, other: Tensor) -> float:
    """Return how far values are apart, at most, as a share of the larger one of each pair."""
    size = torch.maximum(one.abs(), other.abs()).clamp_min(torch.finfo(other.dtype).tiny)
    return float(((one - other).abs() / size).max())


def says_the_same(one: Tensor, other: Tensor) -> bool:
    """Return whether both have the same softmax, which is not the same for all pictures."""
    if one.shape != other.shape or one.shape[1] == 1:
        return False
    first, second = one.double().softmax(1), other.double().softmax(1)
    varied = not is_alike(first, first[:1].expand_as(first)) or not is_alike(first[0], first[0].mean().expand_as(first[0]))
    return varied and is_alike(first, second)


def sums_up(scores: Tensor, other: Tensor) -> bool:
    """Return whether `other` is often told of class scores: the largest ones, which one that is, or how sure they are."""
    count = scores.shape[1]
    if count == 1 or other.shape[1] > count or other.numel() == 1:
        return False
    scores, other = scores.double(), other.double()
    ready = bool(scores.min() >= 0) and is_alike(scores.sum(1), torch.ones_like(scores[:, 0]))
    shares = [scores] if ready else [scores.softmax(1), scores.sigmoid()]
    best = [each.sort(1, descending=True)[0] for each in (*shares, scores)]
    made = [each[:, : other.shape[1]] for each in best if not torch.equal(each, scores)]
    if other.shape[1] == count:
        made.append(torch.nn.functional.one_hot(scores.argmax(1), count).double())
    if other.shape[1] == 1:
        told = [value for each in shares for value in _tell(each)] + [scores.logsumexp(1)]
        told += [each[:, 0] - each[:, 1] for each in best]
        made += [sign[:, None] for each in (*told, *(each[:, 0] for each in best)) for sign in (each, -each, 1 - each)]
    return any(is_alike(each, other) for each in made)


def _tell(shares: Tensor) -> list[Tensor]:
    """Return the entropy of probabilities, in nats, bits and as a share of the most, and the sum of their squares."""
    entropy = -torch.xlogy(shares, shares).sum(1)
    most = torch.tensor(float(shares.shape[1])).log()
    return [entropy, entropy / torch.tensor(2.0).log(), entropy / most, shares.square().sum(1)]


def has_length_1(rows: Tensor) -> bool:
    """Return whether rows have length 1, as embeddings have, and no probabilities."""
    lengths = rows.float().norm(dim=1)
    return rows.shape[1] > 1 and bool((lengths - 1).abs().max() < 1e-3) and bool(rows.min() < 0)


def is_fed(one: Tensor, other: Tensor, weights: Iterable[Tensor]) -> bool:
    """Return whether `other = one @ weight.T + bias` with some matrix among the weights."""
    shape = (other.shape[1], one.shape[1])
    features, scores = one.double(), other.double()
    for weight in weights:
        if tuple(weight.shape) in (shape, (*shape, 1, 1)):
            rest = scores - features @ weight.detach().flatten(1).double().T
            if is_alike(rest, rest[:1].expand_as(rest), scores.abs().max()) and not is_alike(
                scores, scores[:1].expand_as(scores)
            ):
                return True
    return False


def has_order(one: Tensor, other: Tensor) -> bool:
    """Return whether many values lie in the order of another output's, or in the reverse: one is a function of the other."""
    if one.shape != other.shape or one.numel() < ENOUGH:
        return False
    if min(len(set(each.flatten().tolist())) for each in (one, other)) < one.numel() / 2:
        return False
    steps = other.double().flatten()[one.flatten().argsort()].diff()
    return any(bool((sign * steps).min() >= -1e-6 * other.abs().max()) for sign in (1, -1))


def find_link(one: Tensor, other: Tensor) -> Link:
    """Find in autograd's graph how `other` is made of `one`."""
    if one.grad_fn is None or other.grad_fn is None or one is other:
        return ""
    target = (one.grad_fn, one.output_nr)
    touched, beyond = _search([other.grad_fn], target, weighed=False)
    if touched:
        return "mixed" if beyond else "fixed"
    touched, _ = _search([other.grad_fn], target, weighed=True)
    return "weighed" if touched else ""


def _search(nodes: list[Any], target: tuple[Any, int], *, weighed: bool) -> tuple[bool, bool]:
    """Return whether a node's result is met behind others, and whether weights are; behind these only if `weighed`."""
    seen: dict[Any, None] = dict.fromkeys(nodes)
    touched = weights = False
    while nodes:
        node = nodes.pop()
        if _weighs(node):
            weights = True
            if not weighed:
                continue
        for following, place in node.next_functions:
            if following is target[0] and place == target[1]:
                touched = True
            elif following is not None and following not in seen:
                seen[following] = None
                nodes.append(following)
    return touched, weights


def is_weighed(output: Tensor) -> bool | None:
    """Return whether an output comes from weights with no function between, as class scores do; None: no graph tells."""
    if output.grad_fn is None or "::" in output.grad_fn.name():
        return None
    nodes, found = [output.grad_fn], False
    while nodes:
        node = nodes.pop()
        if _weighs(node):
            found = True
        elif node.name().partition("Backward")[0] in PASSING:
            nodes += _before(node)
        else:
            return False
    return found


def _before(node: Any) -> Iterator[Any]:
    return (each for each, _ in node.next_functions if each is not None and "AccumulateGrad" not in each.name())


def _weighs(node: Any) -> bool:
    return any(part in node.name() for part in WEIGHING)
