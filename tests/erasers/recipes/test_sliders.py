"""Concept Sliders: the displacement of their target, its first loss, what is trained and what is rolled out."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import SettingError
from lethe.erasers.learn.loop import Progress, train
from lethe.erasers.learn.moment import ANCHOR, CONCEPT, TEACHER, Ask, Latents
from lethe.erasers.learn.pairs import GONE, SHOWN
from lethe.erasers.learn.poles import NEUTRAL
from lethe.erasers.learn.regress import Regress
from lethe.erasers.learn.run import Run
from lethe.erasers.recipes.sliders import inner
from torch import Tensor
from toy_trainee import distance, gradient_names, job_of, run_of, tiny_task


def test_swapped_poles_turn_the_displacement_round() -> None:
    task, swapped = tiny_task(), tiny_task(ConceptList((Concept("box", "ball"),)))
    found = []
    latents = None
    for each in (task, swapped):
        run = run_of(job_of("sliders", each, {"sampling_steps": 4, "templates": "object"}, batch=4), each)
        with torch.no_grad(), run.active():
            moment = dict(run.draw())
            here = moment["x"]
            # The same latents and sentences for both, each with its own prompts.
            latents = latents or here
            scenes = run.plan.sources[0].scenes  # type: ignore[attr-defined]
            prompts = tuple(next(s for s in scenes if s[NEUTRAL] == one[NEUTRAL]) for one in latents.scenes)
            moment["x"] = type(here)(latents.x, latents.sigma, prompts)
            (term,) = run.plan.terms
            assert isinstance(term, Regress)
            seen = run.seen(term.asks(), moment)
            target = sum(weight * seen[Ask(*key)] for key, weight in term.target.items())
            found.append(target - seen[Ask(TEACHER, NEUTRAL)])
    assert float(found[0].abs().mean()) > 1e-3
    assert torch.allclose(found[0], -found[1], atol=1e-5)


@pytest.mark.parametrize(("eta", "attributes"), [(4.0, False), (2.0, True)])
def test_the_first_loss_is_the_distance_of_the_poles(eta: float, attributes: bool) -> None:
    task = tiny_task()
    run = run_of(job_of("sliders", task, {"eta": eta, "attributes": attributes, "sampling_steps": 6}, batch=6), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        found = float(run.losses(moment)[0])
        assert found == pytest.approx(eta**2 * distance(run, moment, CONCEPT, ANCHOR), rel=1e-4)
    said = {scene[CONCEPT] for scene in run.plan.sources[0].scenes}  # type: ignore[attr-defined]
    assert said == ({"ball", "tree ball", "a green heart ball"} if attributes else {"ball"})


@pytest.mark.parametrize(("target", "role"), [("neutral", NEUTRAL), ("concept", CONCEPT)])
def test_the_target_is_rolled_out_against_the_opposite_pole(target: str, role: str) -> None:
    task = tiny_task()
    run = run_of(job_of("sliders", task, {"target": target, "sampling_steps": 4}), task)
    with torch.no_grad(), run.active():
        latents = run.draw()["x"]
        assert set(latents.known) == {role, ANCHOR}
        opposite = run.teacher(latents, run.features(["box"] * len(latents.x)))
        assert torch.allclose(latents.known[ANCHOR], opposite, atol=1e-5)
    (term,) = run.plan.terms
    assert isinstance(term, Regress) and term.student == role


def test_cross_attention_stays_as_it_is() -> None:
    task = tiny_task()
    run = run_of(job_of("sliders", task, {"sampling_steps": 4}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        for tensor in run.trainables.tensors.values():
            tensor.requires_grad_()
        with gradients():
            found = gradient_names(run, run.losses(moment))
    assert found == set(run.trainables.tensors) and not any(".attn2." in name for name in found)
    assert any(".attn1." in name for name in found) and any(".resnets." in name for name in found)


def test_training_brings_the_loss_down_and_leaves_the_model_alone() -> None:
    task = tiny_task()
    job = job_of("sliders", task, {"sampling_steps": 6, "trajectories": 2}, steps=50, rate=1e-2, batch=2)
    before = {name: value.clone() for name, value in task.model.unet.state_dict().items()}  # type: ignore[union-attr]
    found = train(task, job)
    assert found.losses["erase"][0] > 1e-3
    assert sum(found.losses["erase"][-5:]) < 0.7 * sum(found.losses["erase"][:5])
    after = task.model.unet.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], after[name]) for name in before)


PAIRS = {"learn_from": "pairs"}


def _pictures(count: int = 4) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(2))


def _grads(run: Run) -> dict[str, Tensor]:
    """Of both terms together, at the start."""
    own = run.trainables.tensors
    with torch.no_grad(), run.active():
        moment = run.draw()
        for tensor in own.values():
            tensor.requires_grad_()
        with gradients():
            return dict(
                zip(own, torch.autograd.grad(torch.stack(run.losses(moment)).sum(), list(own.values())), strict=True)
            )


@pytest.mark.parametrize(("target", "role"), [("neutral", NEUTRAL), ("concept", CONCEPT)])
def test_the_first_loss_of_pairs_is_the_teacher_s_error_on_both(target: str, role: str) -> None:
    task = tiny_task(pictures=_pictures())
    run = run_of(job_of("sliders", task, {**PAIRS, "target": target}, batch=6), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        gone, shown = (float(loss) for loss in run.losses(moment))
        for loss, at, who in ((gone, GONE, role), (shown, SHOWN, CONCEPT)):
            latents = moment[at]
            said = run.teacher(latents, run.of_role(Ask(TEACHER, who, at), latents))
            assert latents.noise is not None
            assert loss == pytest.approx(float((said - latents.noise).square().mean()), rel=1e-4)


def test_pairs_of_the_same_picture_teach_nothing_and_swapped_ones_the_reverse() -> None:
    same = _pictures(2).repeat(2, 1, 1, 1)
    given = {**PAIRS, "target": "concept"}
    found = []
    for pictures in (same, _pictures(), _pictures().roll(2, 0)):
        task = tiny_task(pictures=pictures)
        found.append(_grads(run_of(job_of("sliders", task, given, batch=2), task)))
    largest = max(float(grad.abs().max()) for grad in found[1].values())
    assert largest > 1e-4
    assert all(float(grad.abs().max()) < 1e-4 * largest for grad in found[0].values())
    assert all(torch.allclose(found[1][name], -found[2][name], atol=1e-4 * largest) for name in found[1])


def test_times_of_pairs_leave_out_the_first_and_the_last_of_fifty() -> None:
    times = (inner(2000, torch.Generator().manual_seed(0)) * 50).round().long()
    assert sorted(set(times.tolist())) == list(range(1, 49))


def test_an_adapter_of_pairs_draws_the_second_pictures_and_turned_round_the_first() -> None:
    task = tiny_task(pictures=torch.cat([torch.full((1, 4, 8, 8), 0.8), torch.full((1, 4, 8, 8), -0.8)]))
    means = []

    def look(progress: Progress) -> bool:
        if progress.step < 30:
            return False
        run, own = progress.run, dict(progress.run.trainables.tensors)
        x = 2 * torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(5))
        latents, features = Latents(x, torch.full((8,), 2.0), ()), run.features(["ball"] * 8)
        for strength in (-1.0, 1.0):
            with run.acting_as({name: strength * own[name] for name in own if name.endswith(".up")}):
                means.append(float((x - 2 * run.student(latents, features)).mean()))
        return True

    train(task, job_of("sliders", task, {**PAIRS, "target": "concept"}, steps=30, rate=1e-2, batch=4), look)
    assert means[0] > means[1] + 0.1


def test_pairs_that_are_none_are_refused_before_training() -> None:
    with pytest.raises(SettingError, match="pairs"):
        job_of("sliders", tiny_task(), PAIRS)
    with pytest.raises(SettingError, match="3 pictures"):
        job_of("sliders", tiny_task(pictures=_pictures(3)), PAIRS)
