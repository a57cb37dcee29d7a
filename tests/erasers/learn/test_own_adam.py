"""A block's own optimiser: its steps are AdamW's, and what lies in memory is replaced and never changed."""

from __future__ import annotations

import torch
from lethe.erasers.learn.own_adam import OwnAdam
from lethe.erasers.learn.run import Run
from torch import Tensor
from toy_trainee import job_of, run_of, tiny_task

START = {"a": torch.tensor([1.0, -2.0]), "b/c.d": torch.tensor([[0.5]])}
ADAM = OwnAdam("own", 1e-2, (0.8, 0.99), 0.1)


def _run() -> Run:
    task = tiny_task()
    return run_of(job_of("esd", task), task)


def _grads(step: int) -> dict[str, Tensor]:
    """Of both tensors; the second has none at the second step."""
    found = {name: torch.sin(tensor * (step + 2)) for name, tensor in START.items()}
    return found if step != 1 else {"a": found["a"]}


def test_its_steps_are_those_of_adamw() -> None:
    run = _run()
    own = {name: tensor.clone().requires_grad_() for name, tensor in START.items()}
    other = torch.optim.AdamW(own.values(), lr=1e-2, betas=(0.8, 0.99), weight_decay=0.1)
    for step in range(4):
        ADAM.step(run, ADAM.leaves(run, lambda: START), _grads(step))
        for name, tensor in own.items():
            tensor.grad = _grads(step).get(name)
        other.step()
    for name, leaf in ADAM.leaves(run, lambda: {}).items():
        assert torch.allclose(leaf, own[name], atol=1e-6), name
        assert not torch.allclose(leaf, START[name], atol=1e-3)


def test_tensors_without_a_gradient_are_kept_as_they_are() -> None:
    run = _run()
    ADAM.step(run, ADAM.leaves(run, lambda: START), {})
    assert run.memory
    assert all(torch.equal(leaf, START[name]) for name, leaf in ADAM.leaves(run, lambda: {}).items())
    assert set(ADAM.leaves(run, lambda: {})) == set(START)


def test_memory_is_replaced_and_two_optimisers_do_not_mix() -> None:
    run, other = _run(), OwnAdam("other", 1e-2)
    for step in range(2):
        kept = dict(run.memory)
        copies = {name: tensor.clone() for name, tensor in kept.items()}
        leaves = ADAM.leaves(run, lambda: START)
        assert all(leaf.requires_grad and leaf.is_leaf for leaf in leaves.values())
        ADAM.step(run, leaves, _grads(step))
        assert all(torch.equal(tensor, copies[name]) for name, tensor in kept.items())
        assert not any(tensor.requires_grad for tensor in run.memory.values())
    assert set(other.leaves(run, lambda: {"x": torch.zeros(1)})) == {"x"}
    assert not torch.equal(ADAM.leaves(run, lambda: START)["a"], START["a"])
