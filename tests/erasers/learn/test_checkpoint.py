"""Blocks under checkpoints give the gradients they give without, also those that compute in place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients, hooked
from lethe.erasers.learn.checkpoint import blocks_of, checkpointed
from torch import Tensor, nn


class Block(nn.Module):
    """Adds to its input in place, after its norm has kept that for the gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.one, self.other = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x += self.one(self.norm(x)).tanh()
        x += self.other(x * x)
        return x


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().double().requires_grad_(False)


def _gradient(model: Model, checkpoint: bool, seen: list[str]) -> Tensor:
    delta = torch.zeros(6, 6, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    block = model.blocks[0]
    assert isinstance(block, Block)

    @contextmanager
    def again() -> Iterator[None]:
        seen.append("again")
        yield

    with hooked([(block.one, lambda module, args, output: output + args[0] @ delta.T)]), gradients():
        if not checkpoint:
            return torch.autograd.grad(model(x.clone()).square().sum(), delta)[0]
        with checkpointed(model, again):
            return torch.autograd.grad(model(x.clone()).square().sum(), delta)[0]


def test_the_gradients_are_the_same(model: Model) -> None:
    seen: list[str] = []
    plain = _gradient(model, False, seen)
    assert torch.allclose(_gradient(model, True, seen), plain, rtol=1e-10)
    assert plain.norm() > 0
    assert seen == ["again"] * 2


def test_blocks_run_on_copies_and_are_themselves_afterwards(model: Model) -> None:
    x = torch.ones(1, 6, dtype=torch.float64)
    with checkpointed(model), torch.enable_grad():
        model(x)
        assert all("forward" in vars(block) for block in blocks_of(model))
    assert torch.equal(x, torch.ones_like(x))
    assert not any("forward" in vars(block) for block in blocks_of(model))
    model(x)
    assert not torch.equal(x, torch.ones_like(x))
