"""What every registered training recipe promises, on a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lethe.erasers.concepts import ConceptList
from lethe.erasers.errors import ConceptError
from lethe.erasers.learn.loop import Job, Progress, Trained, train
from lethe.erasers.learn.moment import STUDENT, Latents
from lethe.erasers.learn.run import Run
from lethe.erasers.learn.scenes import scene
from lethe.erasers.registry import recipes
from lethe.erasers.result import Eraser
from lethe.erasers.store.eraser_file import PARTS, load_eraser, save_eraser
from lethe.erasers.task import Task
from torch import Tensor
from toy_trainee import BALL, job_of, shortened_settings, tiny_task

SHORT: dict[str, Any] = {
    "sampling_steps": 4,
    "trajectories": 2,
    "attack_steps": 2,
    "count": 2,
    "pictures": 2,
    "inversion_steps": 2,
    "mask_draws": 1,
    "keep_steps": 1,
}
"""Settings that keep recipes short, for those that have them."""
STEPS = 4


@pytest.fixture(params=sorted(recipes()))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


FROM_PICTURES = {"geom_erasing"}
"""Recipes that learn from the user's pictures and regions alone."""


def task_for(name: str, concepts: ConceptList = BALL, **given: Any) -> Task:
    if name in FROM_PICTURES:
        pictures = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        regions = torch.zeros(2, 8, 8)
        regions[0, :3, :3] = 1
        given |= {"pictures": pictures, "regions": regions}
    return tiny_task(concepts, **given)


def job(name: str, task: Task, **schedule: Any) -> Job:
    return job_of(name, task, shortened_settings(name, SHORT), **{"steps": STEPS, "batch": 2, **schedule})


@cache
def trained(name: str) -> tuple[Task, Trained]:
    task = task_for(name)
    return task, train(task, replace(job(name, task), keep_state=True))


def tensors_of(eraser: Eraser) -> dict[str, Tensor]:
    return {
        f"{part}.{owner}.{kind}": tensor
        for part in PARTS
        for owner, entry in getattr(eraser, part).items()
        for kind, tensor in entry.tensors().items()
    }


def same(one: Eraser, other: Eraser) -> bool:
    first, second = tensors_of(one), tensors_of(other)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def state_of(task: Task) -> dict[str, Tensor]:
    model: Any = task.model
    return {**model.unet.state_dict(), **model.text_model.state_dict()}


def hooks_of(task: Task) -> int:
    model: Any = task.model
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) for m in (*model.unet.modules(), *model.text_model.modules())
    )


def test_before_the_first_step_the_student_is_the_teacher(name: str) -> None:
    task = task_for(name)
    begun = job(name, task)
    run = Run(task, begun.plan, begun.schedule, begun.seed)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    latents = Latents(x, torch.tensor([1.0]), (scene("tree"),))
    with torch.no_grad(), run.active():
        own = run.student(latents, run.features(["tree"], STUDENT))
        teacher = run.teacher(latents, run.features(["tree"]))
    limit = 0.15 if name in STARTED else 0.0
    assert float((own - teacher).norm() / teacher.norm()) <= limit


STARTED = {"mace_lora", "trce_steer"}
"""Recipes that begin with a closed-form edit, which hardly moves other prompts."""


def test_it_changes_something_and_the_model_nothing(name: str) -> None:
    task = task_for(name)
    before, hooks = {key: value.clone() for key, value in state_of(task).items()}, hooks_of(task)
    found = train(task, job(name, task))
    assert any(bool(tensor.any()) for tensor in tensors_of(found.eraser).values())
    assert all(torch.equal(value, before[key]) for key, value in state_of(task).items())
    assert hooks_of(task) == hooks
    assert all(parameter.requires_grad for parameter in task.model.unet.parameters())  # type: ignore[union-attr]
    assert not torch.is_autocast_enabled("cpu")


def test_the_same_seed_gives_the_same_eraser_and_another_a_different_one(name: str) -> None:
    task, first = trained(name)
    begun = job(name, task)
    assert same(train(task, begun).eraser, first.eraser)
    assert not same(train(task, replace(begun, seed=begun.seed + 1)).eraser, first.eraser)


def test_going_on_is_as_if_it_had_never_stopped(name: str, tmp_path: Path) -> None:
    task, whole = trained(name)

    def stop(progress: Progress) -> bool:
        return progress.step == 2

    half = train(task, replace(job(name, task), keep_state=True), stop)
    save_eraser(half.eraser, tmp_path / "half.safetensors")
    resumed = train(task, replace(job(name, task), resumed=load_eraser(tmp_path / "half.safetensors")))
    assert same(resumed.eraser, whole.eraser)


def test_it_comes_back_from_a_file_and_says_how_it_was_made(name: str, tmp_path: Path) -> None:
    task, found = trained(name)
    save_eraser(found.eraser, tmp_path / "eraser.safetensors")
    loaded = load_eraser(tmp_path / "eraser.safetensors")
    assert same(loaded, found.eraser)
    recipe = loaded.recipe
    assert recipe.method == name
    assert recipe.settings["steps"] == STEPS
    schedule = job(name, task).schedule
    assert [recipe.settings[part] for part in ("rate", "course", "optimizer", "batch", "rank")] == [
        schedule.rate, schedule.course, schedule.optimizer, schedule.batch, schedule.rank
    ]  # fmt: skip
    assert set(recipe.settings) >= {parameter.name for parameter in recipes()[name].spec.parameters}
    assert [concept["text"] for concept in recipe.concepts] == ["ball"]
    assert recipe.preserve == BALL.kept
    assert json.dumps(recipe.settings)
    assert recipe.family == task.family.name


def test_models_that_predict_velocity_train_too(name: str) -> None:
    task = task_for(name, prediction="v_prediction")
    found = train(task, job(name, task, steps=2))
    assert any(bool(tensor.any()) for tensor in tensors_of(found.eraser).values())
    assert all(value == value for values in found.losses.values() for value in values)


def test_nothing_to_erase_is_refused(name: str) -> None:
    task = task_for(name, ConceptList(preserve=("box",)))
    with pytest.raises(ConceptError):
        job(name, task)


def test_a_concept_without_replacement_or_keep_list_will_do(name: str) -> None:
    concepts = ConceptList((replace(BALL.erase[0], replacement=""),))
    task = task_for(name, concepts)
    try:
        found = train(task, job(name, task, steps=2))
    except ConceptError as error:
        assert error.advice
        assert name in NEED_MORE
        return
    assert found.steps == 2


NEED_MORE = {"ace", "sliders"}
"""Recipes that need prompts to keep or a replacement, and say so."""


def test_its_settings_fit_their_ranges_and_it_is_described(name: str) -> None:
    recipe = recipes()[name]
    checked = recipe.spec.settings({})
    assert recipe.spec.settings(checked) == checked
    assert not {"steps", "learning_rate", "rate", "course", "optimizer", "rank", "seed", "batch"} & set(checked)
    assert all(len(parameter.tooltip) > 20 for parameter in recipe.spec.parameters)
    assert recipe.spec.name == name
    assert recipe.spec.paper
    assert recipe.schedule.steps >= 1
    assert recipe.small.steps >= 1
