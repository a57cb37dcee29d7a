"""Prompts of different lengths, and what hosts give a denoiser beside their features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lethe.erasers.learn.full import Full
from lethe.erasers.learn.moment import Features, Latents
from lethe.erasers.learn.plan import Plan, Schedule
from lethe.erasers.learn.run import Run
from lethe.erasers.task import EncodedPrompt, remembering
from torch import Tensor
from toy_trainee import tiny_task


def _prompt(tokens: int, whole: int = 0, beside: Mapping[str, Tensor] | None = None) -> EncodedPrompt:
    states = torch.arange(1.0, tokens * 2 + 1).view(tokens, 2)
    padded = torch.cat([states, torch.full((whole - tokens, 2), -1.0)]) if whole else None
    return EncodedPrompt("", states, tokens - 1, whole=padded, beside=beside or {})


def test_rows_keep_their_own_length() -> None:
    found = Features.joined([Features.of([_prompt(3), _prompt(5)]), Features.of([_prompt(3)])])
    assert found.states.shape == (3, 5, 2)
    assert found.lengths == (3, 5, 3)
    assert not found.states[0, 3:].any()
    assert found.alike() == [[0, 2], [1]]
    assert found.at([0, 2]).states.shape == (2, 3, 2)
    assert not found.at([0, 2]).lengths
    assert not Features.of([_prompt(4), _prompt(4)]).lengths


def test_padding_that_the_denoiser_is_given_and_what_is_beside_go_along() -> None:
    one, other = (_prompt(n, 6, {"mask": torch.full((1, 6), float(n))}) for n in (2, 3))
    found = Features.of([one, other])
    assert torch.equal(found.states[0], one.read)
    assert torch.equal(found.stacked()["mask"], torch.tensor([[2.0] * 6, [3.0] * 6]))
    assert found.alike() == [[0, 1]]
    assert Features.joined([found, Features.of([_prompt(6)])]).alike() == [[0, 1], [2]]


def test_rows_of_a_length_go_through_the_model_together_and_come_back_in_order() -> None:
    task = tiny_task()
    run, seen = Run(task, Plan(Full("cross"), (), ()), Schedule(1, 1.0), seed=0), []

    def predict(x: Tensor, sigma: Tensor, context: Tensor, pooled: Any = None, beside: Any = None) -> Tensor:
        seen.append((tuple(context.shape[:2]), sorted(beside or {})))
        return x * context.sum((1, 2)).view(-1, 1, 1, 1)

    model: Any = run.model
    model.predict = predict
    prompts = [_prompt(3), _prompt(5, beside={"mask": torch.ones(1, 5)}), _prompt(3)]
    latents = Latents(torch.ones(3, 1, 2, 2), torch.ones(3), ())
    said = run.teacher(latents, Features.of(prompts))
    assert seen == [((2, 3), []), ((1, 5), ["mask"])]
    assert said[:, 0, 0, 0].tolist() == [float(prompt.states.sum()) for prompt in prompts]
    assert run.predictions == 3


def test_prompts_are_forgotten_when_they_take_too_much_room() -> None:
    asked: list[list[str]] = []

    def encode(prompts: list[str]) -> list[EncodedPrompt]:
        asked.append(prompts)
        return [EncodedPrompt(text, torch.zeros(2, 2), 0, beside={"more": torch.zeros(1, 60)}) for text in prompts]

    remember = remembering(encode, most=600)
    for prompts in (["a"], ["b"], ["b"], ["c"], ["b"], ["a"]):
        remember(prompts)
    assert asked == [["a"], ["b"], ["c"], ["a"]]
