"""Projected gradient descent in the encoded prompt: its bounds, and that it goes where it should."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.learn.moment import CONCEPT, TEACHER, Ask, Features, Moment
from lethe.erasers.learn.pgd import Pgd, noise_in
from lethe.erasers.learn.run import Run
from lethe.erasers.learn.space import EPS, FLOW, V, mixed, own_space
from toy_trainee import job_of, run_of, tiny_task


def _run(prediction: str = "epsilon") -> Run:
    task = tiny_task(prediction=prediction)
    return run_of(job_of("esd", task, {"sampling_steps": 6, "trajectories": 2}), task)


def _error(run: Run, moment: Moment, features: Features) -> float:
    latents = moment["x"]
    said = noise_in(run.model.prediction(), latents.x, latents.sigma, run.student(latents, features))
    assert latents.noise is not None
    return float((said - latents.noise).square().mean())


@pytest.mark.parametrize("bound", [0.01, 0.1, 5.0])
def test_features_stay_in_the_box_and_between_the_prompts_extremes(bound: float) -> None:
    run = _run()
    with torch.no_grad(), run.active():
        moment = run.draw()
        plain = run.of_role(Ask(TEACHER, CONCEPT), moment["x"]).states
        found = Pgd(bound, 3).make(run, moment).states
    assert float((found - plain).abs().max()) <= bound * (1 + 1e-4)
    assert float((found - plain).abs().max()) > 0.5 * bound
    for own, moved in zip(plain, found, strict=True):
        assert own.min() <= moved.min() and moved.max() <= own.max()
    assert not found.requires_grad


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_attack_brings_the_noise_nearer_and_leaves_the_model_alone(prediction: str) -> None:
    run, errors = _run(prediction), []
    with torch.no_grad(), run.active():
        moment = run.draw()
        before = {name: tensor.clone() for name, tensor in run.trainables.tensors.items()}
        for steps in (0, 2, 20):
            run.generator.manual_seed(1)
            errors.append(_error(run, moment, Pgd(0.5, steps).make(run, moment)))
        assert all(torch.equal(before[name], tensor) for name, tensor in run.trainables.tensors.items())
    assert errors == sorted(errors, reverse=True) and len(set(errors)) == 3


def test_the_start_is_random_and_a_bound_of_zero_draws_nothing() -> None:
    run = _run()
    with torch.no_grad(), run.active():
        moment = run.draw()
        first, second = (Pgd(0.1, 0).make(run, moment).states for _ in range(2))
        assert not torch.equal(first, second)
        state = run.generator.get_state()
        found = Pgd(0.0).make(run, moment).states
        assert torch.equal(found, run.of_role(Ask(TEACHER, CONCEPT), moment["x"]).states)
        assert torch.equal(state, run.generator.get_state())


@pytest.mark.parametrize("kind", [EPS, V, FLOW])
def test_the_right_prediction_sees_the_noise_that_was_mixed_in(kind: str) -> None:
    clean, noise = torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.randn(3, 2, 4, 4, dtype=torch.float64)
    sigma = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    x = mixed(kind, clean, noise, sigma)
    torch.testing.assert_close(noise_in(kind, x, sigma, own_space(kind, x, sigma, clean)), noise)
