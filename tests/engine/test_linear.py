"""Linear layers laid out for the CPU: the same results, and nothing kept behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from apr_agents.engine.linear import arrange, watching


class Mixer(nn.Module):
    """Three layers of one input, one of their sum, and one that is used twice."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.a = nn.Linear(24, 16, bias=False, dtype=dtype)
        self.b = nn.Linear(24, 16, dtype=dtype)
        self.c = nn.Linear(24, 16, bias=False, dtype=dtype)
        self.after = nn.Linear(16, 24, dtype=dtype)
        self.twice = nn.Linear(24, 24, dtype=dtype)

    def forward(self, given: Tensor) -> Tensor:
        mixed = self.a(given) * self.b(given) + self.c(given)
        return self.twice(self.twice(self.after(mixed)))


def names(groups: list[list[Any]]) -> list[list[str]]:
    return [[place.name for place in group] for group in groups]


def arranged(model: nn.Module, given: Tensor) -> tuple[list[list[str]], Callable[[], None]]:
    with watching(model) as groups:
        model(given)
    return names(groups), arrange(groups)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.03)])
@torch.inference_mode()
def test_the_results_stay_the_same_whatever_the_number_of_tokens(
    dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(1)
    model = Mixer(dtype)
    inputs = [torch.randn(1, count, 24, dtype=dtype) for count in (1, 7, 8, 33, 2)]
    expected = [model(given) for given in inputs]
    arranged(model, inputs[0])
    for given, wanted in zip(inputs, expected, strict=True):
        assert_close(model(given), wanted, atol=tolerance, rtol=tolerance)


@torch.inference_mode()
def test_layers_of_one_input_become_one_product_and_layers_of_another_do_not() -> None:
    model = Mixer(torch.float32)
    groups, _ = arranged(model, torch.randn(1, 2, 24))
    assert groups == [["a", "b", "c"], ["after"], ["twice"]]


@torch.inference_mode()
def test_an_input_is_computed_anew_when_it_comes_again_and_not_kept_after_that() -> None:
    model = Mixer(torch.float32)
    given = torch.randn(1, 2, 24)
    arranged(model, given)
    first = model.a(given).clone()
    given.mul_(2)
    assert_close(model.a(given), 2 * first)
    model.b(given), model.c(given)
    assert model.a._product._input is None


@torch.inference_mode()
def test_it_can_be_undone() -> None:
    model = Mixer(torch.float32)
    layers = dict(model.named_children())
    _, undo = arranged(model, torch.randn(1, 2, 24))
    assert all(getattr(model, name) is not layer for name, layer in layers.items())
    undo()
    assert dict(model.named_children()) == layers


@torch.inference_mode()
def test_what_is_more_than_a_linear_layer_stays_as_it_is() -> None:
    class Adapted(nn.Linear):
        pass

    model = nn.Sequential(Adapted(8, 8), nn.Linear(8, 8, dtype=torch.float64))
    model[1].to(torch.float64)
    with watching(model) as groups:
        model[1](torch.randn(1, 8, dtype=torch.float64))
    before = list(model)
    arrange(groups)
    assert all(one is other for one, other in zip(before, model, strict=True))


def test_a_watched_run_leaves_no_hook_behind() -> None:
    model = Mixer(torch.float32)
    with watching(model):
        model(torch.randn(1, 2, 24))
    assert not any(layer._forward_pre_hooks for layer in model.children())
