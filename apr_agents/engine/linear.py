"""Linear layers as a CPU multiplies fastest. Knows modules; never what they are for.

torch lays a weight out anew for every product, which takes longer than the product itself where
a step has few tokens. Here each weight is laid out once (oneDNN's own order), and layers that
are given the same input, such as those of queries, keys and values, become one product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

USUAL = 8
"""Tokens of a step for which weights are laid out; other steps are only a little slower."""


class _Place(NamedTuple):
    """Where a layer hangs, and the layer."""

    parent: nn.Module
    name: str
    layer: nn.Linear

    def put(self, module: nn.Module) -> None:
        setattr(self.parent, self.name, module)


class _Product:
    """The layers of a group: computed together when the first of them is asked."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        weight = torch.cat([layer.weight.detach() for layer in layers])
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, USUAL)
        self._bias = _biases(layers)
        self._sizes = [layer.out_features for layer in layers]
        self._input: Tensor | None = None
        self._outputs: list[Tensor | None] = []

    def take(self, index: int, given: Tensor) -> Tensor:
        """The output of a layer; each gives up its own, so that nothing is kept for long."""
        if given is not self._input or self._outputs[index] is None:
            product = torch.ops.mkldnn._linear_pointwise(
                given, self._weight, self._bias, "none", [], ""
            )
            self._input, self._outputs = given, [*product.split(self._sizes, -1)]
        output, self._outputs[index] = self._outputs[index], None
        if not any(other is not None for other in self._outputs):
            self._input = None
        assert output is not None
        return output


class _Arranged(nn.Module):
    """Stands where a linear layer stood."""

    def __init__(self, product: _Product, index: int) -> None:
        super().__init__()
        self._product, self._index = product, index

    def forward(self, given: Tensor) -> Tensor:
        return self._product.take(self._index, given)


@contextmanager
def watching(model: nn.Module) -> Iterator[list[list[_Place]]]:
    """While this holds, a run of ``model`` fills the list: layers in order, by their input."""
    asked: list[tuple[Tensor, _Place]] = []
    groups: list[list[_Place]] = []
    handles = [
        place.layer.register_forward_pre_hook(
            lambda _, given, place=place: asked.append((given[0], place))
        )
        for place in _layers(model)
    ]
    try:
        yield groups
    finally:
        for handle in handles:
            handle.remove()
    once = {place.layer: place for _, place in asked}
    for _, same in groupby(asked, key=lambda each: (id(each[0]), id(each[1].parent))):
        group = [place for _, place in same]
        if all(once.pop(place.layer, None) for place in group):
            groups.append(group)


def arrange(groups: Sequence[Sequence[_Place]]) -> Callable[[], None]:
    """Have each group of layers compute as one product; what is returned undoes it.

    Layers whose kind of numbers this CPU has no product for stay as they are.
    """
    changed: list[_Place] = []
    for group in groups:
        try:
            product = _Product([place.layer for place in group])
        except RuntimeError:
            continue
        for index, place in enumerate(group):
            place.put(_Arranged(product, index))
        changed += group

    def undo() -> None:
        for place in changed:
            place.put(place.layer)

    return undo


def _layers(model: nn.Module) -> Iterator[_Place]:
    """The linear layers on the CPU that are nothing more than that."""
    for parent in model.modules():
        for name, layer in parent.named_children():
            if type(layer) is nn.Linear and layer.weight.device.type == "cpu":
                yield _Place(parent, name, layer)


def _biases(layers: Sequence[nn.Linear]) -> Tensor | None:
    given: list[Tensor | None] = [layer.bias for layer in layers]
    if all(bias is None for bias in given):
        return None
    # A layer without one adds nothing.
    zeros = [torch.zeros_like(layer.weight[:, 0]) for layer in layers]
    return torch.cat(
        [zero if bias is None else bias for bias, zero in zip(given, zeros, strict=True)]
    ).detach()
