"""Receler's adversary: where its vectors stand, what they are led to, and that nothing else moves."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.learn.moment import CONCEPT, STUDENT, TEACHER, Ask
from lethe.erasers.learn.run import Run
from lethe.erasers.learn.soft_prompt import SoftPrompt, spliced
from toy_trainee import job_of, run_of, tiny_task


def _run(batch: int = 2) -> Run:
    task = tiny_task()
    return run_of(job_of("receler", task, {"sampling_steps": 4, "trajectories": 2}, batch=batch), task)


def test_vectors_stand_behind_the_concept_and_push_the_padding_out() -> None:
    states = torch.arange(6.0)[:, None]
    assert spliced(states, 2, torch.tensor([[10.0], [11.0]])).flatten().tolist() == [0, 1, 10, 11, 2, 3]
    run = _run()
    with torch.no_grad(), run.active():
        latents = run.draw()
        plain = run.of_role(Ask(STUDENT, CONCEPT), latents["x"]).states
        made = SoftPrompt(vectors=5, steps=1).make(run, latents).states
        torch.testing.assert_close(made[:, :2], plain[:, :2])
        torch.testing.assert_close(made[:, 7:], plain[:, 2:-5])
        torch.testing.assert_close(made[0, 2:7], made[1, 2:7])
        assert torch.equal(SoftPrompt(steps=0).make(run, latents).states, plain)


def test_the_attack_brings_the_students_prediction_to_the_teachers() -> None:
    run = _run()
    with torch.no_grad(), run.active():
        latents = run.draw()
        goal = run.seen([Ask(TEACHER, CONCEPT)], latents)[Ask(TEACHER, CONCEPT)]
        before = {name: tensor.clone() for name, tensor in run.trainables.tensors.items()}

        def error(steps: int) -> float:
            run.memory = {}
            features = SoftPrompt(vectors=4, steps=steps, decay=0.0).make(run, latents)
            return float((run.student(latents["x"], features) - goal).square().mean())

        assert error(6) < 0.3 * error(1)
        assert all(torch.equal(before[name], tensor) for name, tensor in run.trainables.tensors.items())
        assert all(tensor.grad is None for tensor in run.trainables.tensors.values())


def test_vectors_go_on_from_step_to_step_and_move_at_most_by_the_rate() -> None:
    run = _run()
    attack = SoftPrompt(vectors=3, steps=1, rate=0.02, decay=0.0)
    with torch.no_grad(), run.active():
        latents = run.draw()
        attack.make(run, latents)
        (first,) = run.memory.values()
        kept = first.clone()
        attack.make(run, latents)
        (second,) = run.memory.values()
    assert torch.equal(first, kept)
    moved = (second - first).abs()
    assert 0 < float(moved.max()) <= 0.02 * 1.001
    spread = kept.square().mean() / run.features(["ball"]).states.square().mean()
    assert float(spread) == pytest.approx(1, abs=0.3)


def test_each_prompt_has_vectors_of_its_own() -> None:
    task = tiny_task(ConceptList((Concept("ball"), Concept("tree"))))
    run = run_of(job_of("receler", task, {"sampling_steps": 4, "trajectories": 2}, batch=8), task)
    with torch.no_grad(), run.active():
        made = SoftPrompt(vectors=2, steps=1).make(run, latents := run.draw()).states
    assert len(run.memory) == 2
    one, other = run.memory.values()
    assert not torch.equal(one, other)
    for row, found in zip(latents["x"].scenes, made, strict=True):
        torch.testing.assert_close(found[2:4], run.memory[f"soft prompt {row[CONCEPT]}"])
