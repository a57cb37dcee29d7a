"""The loop: going on exactly, falling back from a bad loss, ending early, masks, surgery, averages, penalties."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import SettingError, TrainingError
from lethe.erasers.learn.full import Full
from lethe.erasers.learn.loop import Job, Progress, Stopped, shortened, train
from lethe.erasers.learn.moment import CONCEPT, MAIN, NULL, STUDENT, TEACHER, Ask, Moment
from lethe.erasers.learn.optimizer import rate_at
from lethe.erasers.learn.plan import COSINE, ERASE, KEEP, RESTARTS, Plan, Schedule
from lethe.erasers.learn.regress import Denoise, Regress, negative_guidance, same
from lethe.erasers.learn.rollout import Rollout
from lethe.erasers.learn.run import Run
from lethe.erasers.learn.scenes import concept_scenes
from lethe.erasers.learn.shift import Shift
from lethe.erasers.result import Eraser
from lethe.erasers.store.eraser_file import load_eraser, save_eraser
from torch import Tensor
from toy_trainee import run_of, tiny_task

QUICK = Schedule(steps=6, rate=3e-3, batch=2)


def job(task: Any, schedule: Schedule = QUICK, **given: Any) -> Job:
    parts = {"terms": (negative_guidance(1.0),), "parameters": Full("cross")}
    names = set(Plan.__dataclass_fields__)
    parts |= {name: given.pop(name) for name in list(given) if name in names}
    plan = Plan(sources=(Rollout(concept_scenes(task, "none"), steps=4, kept=2),), **parts)
    return Job("toy", {}, plan, schedule, seed=5, **given)


def tensors_of(eraser: Eraser) -> dict[str, Tensor]:
    return {f"{n}.{k}": t for n, edit in eraser.adapters.items() for k, t in edit.tensors().items()}


def equal(one: Eraser, other: Eraser) -> bool:
    first, second = tensors_of(one), tensors_of(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "schedule",
    [
        QUICK,
        replace(QUICK, optimizer="adamw", decay=0.1, average=0.9),
        replace(QUICK, course=COSINE, warmup=2, clip=0.1),
        replace(QUICK, optimizer="sgd"),
    ],
)
def test_going_on_from_a_file_is_as_if_it_had_never_stopped(schedule: Schedule, tmp_path: Any) -> None:
    task = tiny_task()
    whole = train(task, job(task, schedule))

    def stop(progress: Progress) -> bool:
        return progress.step == 3

    half = train(task, job(task, schedule, keep_state=True), stop)
    assert half.steps == 3
    assert not equal(half.eraser, whole.eraser)
    save_eraser(half.eraser, tmp_path / "half.safetensors")
    resumed = train(task, job(task, schedule, resumed=load_eraser(tmp_path / "half.safetensors")))
    assert equal(resumed.eraser, whole.eraser)
    assert resumed.losses[ERASE] == whole.losses[ERASE][3:]


def test_it_goes_on_only_from_what_it_began() -> None:
    task = tiny_task()
    half = train(task, job(task, replace(QUICK, steps=2), keep_state=True)).eraser
    with pytest.raises(TrainingError, match="other settings or concepts"):
        train(task, replace(job(task, resumed=half), name="another"))
    with pytest.raises(TrainingError, match="other settings or concepts"):
        train(task, replace(job(task, resumed=half), settings={"eta": 2.0}))
    other = tiny_task(ConceptList((Concept("heart", "box"),)))
    with pytest.raises(TrainingError, match="other settings or concepts"):
        train(other, job(other, resumed=half))
    with pytest.raises(TrainingError, match="no state"):
        train(task, job(task, resumed=replace(half, training={})))
    with pytest.raises(TrainingError, match="no state"):
        train(task, job(task, resumed=half, parameters=Full("self")))


@dataclass
class Poisoned:
    """A term that turns bad at a step."""

    at: int
    value: float
    aim: str = ERASE
    weight: float = 1.0
    calls: list[int] = field(default_factory=list)

    def asks(self) -> Sequence[Ask]:
        return [Ask(STUDENT, CONCEPT)]

    def loss(self, run: Run, moment: Moment, seen: Mapping[Ask, Tensor]) -> Tensor:
        self.calls.append(run.step)
        return seen[Ask(STUDENT, CONCEPT)].square().mean() * (self.value if run.step == self.at else 1.0)


def test_layers_that_change_their_own_inputs_have_to_be_told_of() -> None:
    leaf = torch.tensor(3.0, requires_grad=True)

    def squared() -> Tensor:
        x = leaf * 2
        y = x * x
        x += 1
        return y

    with gradients():
        assert float(torch.autograd.grad(squared(), leaf)[0]) == 24
    with gradients(in_place=False), pytest.raises(RuntimeError, match="inplace"):
        torch.autograd.grad(squared(), leaf)
    assert not tiny_task().loaded().in_place


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e9])
def test_a_bad_loss_ends_training_and_the_last_good_state_is_kept(value: float) -> None:
    task = tiny_task()
    schedule = replace(QUICK, steps=30, rate=1e-3)
    found = train(task, job(task, schedule, terms=(Poisoned(26, value),), keep_state=True))
    good = train(task, job(task, replace(schedule, steps=25), terms=(Poisoned(26, value),)))
    assert found.steps == 25
    assert "at step 27" in found.ended
    assert "what step 25 had learned is kept" in found.ended
    assert equal(found.eraser, good.eraser)
    resumed = train(task, job(task, schedule, terms=(Poisoned(-1, 1.0),), resumed=found.eraser))
    assert equal(resumed.eraser, train(task, job(task, schedule, terms=(Poisoned(-1, 1.0),))).eraser)


def test_a_loss_that_is_bad_from_the_start_is_an_error() -> None:
    task = tiny_task()
    with pytest.raises(TrainingError, match="step 1"):
        train(task, job(task, terms=(Poisoned(0, math.nan),)))


def test_stopping_within_a_step_undoes_its_draws() -> None:
    task, pulses = tiny_task(), []

    def pulse() -> None:
        pulses.append(1)
        if len(pulses) == 14:
            raise Stopped("enough")

    fresh = Rollout(concept_scenes(task, "none"), steps=4, kept=0)
    plan = replace(job(task).plan, sources=(fresh,))
    whole = train(task, replace(job(task), plan=plan))
    half = train(task, replace(job(task, keep_state=True, pulse=pulse), plan=plan))
    assert half.ended == "enough"
    assert 0 < half.steps < 6
    assert equal(train(task, replace(job(task, resumed=half.eraser), plan=plan)).eraser, whole.eraser)


def test_a_watcher_is_told_every_step_and_its_errors_pass() -> None:
    task, seen = tiny_task(), []

    def watch(progress: Progress) -> bool:
        seen.append((progress.step, progress.losses[ERASE]))
        if progress.step == 4:
            raise KeyError("mine")
        return False

    with pytest.raises(KeyError):
        train(task, job(task), watch)
    assert [step for step, _ in seen] == [1, 2, 3, 4]
    assert all(loss > 0 for _, loss in seen)


def test_masked_entries_never_move() -> None:
    task = tiny_task()
    masks: dict[str, Tensor] = {}

    def mask(run: Run) -> Mapping[str, Tensor]:
        for number, (name, tensor) in enumerate(run.trainables.tensors.items()):
            drawn = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(number))
            masks[name] = (drawn < 0.5).float()
        return masks

    found = train(task, job(task, mask=mask)).eraser
    for name, keep in masks.items():
        delta = found.adapters[f"{name}.weight"].delta(tuple(keep.shape))
        assert not bool(delta[keep == 0].any())
    assert any(
        bool(edit.delta(tuple(masks[n.removesuffix(".weight")].shape)).any()) for n, edit in found.adapters.items()
    )


def test_surgery_is_given_both_gradients_and_its_answer_is_used() -> None:
    task, given = tiny_task(), []

    def surgery(erasing: list[Tensor | None], keeping: list[Tensor | None]) -> list[Tensor | None]:
        given.append((erasing, keeping))
        return [None if gradient is None else torch.zeros_like(gradient) for gradient in erasing]

    # Kept latents make same() exactly zero at the start; another role's target does not.
    terms = (negative_guidance(1.0), replace(same(NULL), target={(TEACHER, CONCEPT): 1.0}))
    found = train(task, job(task, surgery=surgery, terms=terms)).eraser
    assert len(given) == 6
    assert all(any(g is not None and bool(g.any()) for g in side) for side in given[0])
    assert not any(bool(t.any()) for t in tensors_of(found).values())


def test_penalties_count_as_keeping_and_pull() -> None:
    task = tiny_task()

    def penalty(trainables: Any) -> Tensor:
        return torch.stack([tensor.square().sum() for tensor in trainables.tensors.values()]).sum() * 100

    free, held = train(task, job(task)), train(task, job(task, penalties=(penalty,)))
    assert sum(free.losses[KEEP]) == 0 < sum(held.losses[KEEP])
    sizes = [sum(float(t.norm()) for t in tensors_of(found.eraser).values()) for found in (free, held)]
    assert sizes[1] < sizes[0]


def test_gradients_can_be_averaged_over_processes() -> None:
    task, seen = tiny_task(), []

    def reduce(gradients: list[Tensor]) -> None:
        seen.append(len(gradients))
        for gradient in gradients:
            gradient.zero_()

    found = train(task, job(task, reduce=reduce)).eraser
    # Once a step for the losses, once for the gradients.
    assert seen == [1, len(found.adapters)] * 6
    assert not any(bool(t.any()) for t in tensors_of(found).values())


@dataclass(frozen=True)
class Carrying:
    """A term that carries a number and a count from step to step."""

    term: Regress = field(default_factory=lambda: negative_guidance(1.0))
    aim: str = ERASE
    weight: float = 1.0

    def asks(self) -> Sequence[Ask]:
        return self.term.asks()

    def loss(self, run: Run, moment: Moment, seen: Mapping[Ask, Tensor]) -> Tensor:
        run.memory["carried"] = run.memory.get("carried", torch.zeros(2)) + 1
        run.memory["count"] = torch.tensor(run.step + 1)
        return self.term.loss(run, moment, seen)


def test_what_blocks_carry_is_averaged_over_processes_too() -> None:
    task = tiny_task()

    def reduce(tensors: list[Tensor]) -> None:
        for tensor in tensors:
            tensor.mul_(0.5)

    parts = {"terms": (Carrying(),), "keep_state": True}
    alone, shared = (train(task, job(task, reduce=how, **parts)).eraser.training for how in (None, reduce))
    assert alone["memory.carried"].tolist() == [6.0, 6.0]
    # 1/2 of one more at each of six steps.
    assert shared["memory.carried"].tolist() == pytest.approx([1 - 0.5**6] * 2)
    assert int(alone["memory.count"]) == int(shared["memory.count"]) == 6


def test_the_rate_takes_its_course() -> None:
    flat = Schedule(10, 1.0)
    assert [rate_at(step, flat) for step in (0, 9)] == [1.0, 1.0]
    warm = replace(flat, warmup=4, course=COSINE)
    assert [rate_at(step, warm) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert rate_at(4, warm) == 1.0
    assert rate_at(7, warm) == pytest.approx(0.5)
    cycles = replace(flat, steps=30, course=RESTARTS)
    assert [rate_at(step, cycles) for step in (0, 10, 20)] == pytest.approx([1.0, 1.0, 1.0])
    assert shortened(flat, 3, 0.0, 7) == replace(flat, steps=3, rank=7)


def test_weights_of_a_target_have_to_add_up_to_one() -> None:
    with pytest.raises(SettingError, match="add up to 1"):
        Regress({(TEACHER, NULL): 2.0, (TEACHER, CONCEPT): -0.5})


def test_denoising_knows_the_noise_and_counts_regions() -> None:
    from lethe.erasers.learn.pictures import Pictures

    pictures = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    regions = torch.zeros(2, 8, 8)
    regions[:, :4] = 2.0
    task = tiny_task(pictures=pictures)
    block = Pictures(concept_scenes(task, "none"), given=True)
    run = run_of(replace(job(task), plan=replace(job(task).plan, sources=(block,))), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        latents = moment[MAIN]
        seen = run.seen([Ask(STUDENT, CONCEPT)], moment)
        error = (seen[Ask(STUDENT, CONCEPT)] - latents.noise).square()
        plain = Denoise(CONCEPT).loss(run, moment, seen)
        assert float(plain) == pytest.approx(float(error.mean()), rel=1e-4)
        moment = {MAIN: replace(latents, regions=regions[: len(latents.x)])}
        half = Denoise(CONCEPT).loss(run, moment, seen)
        assert float(half) == pytest.approx(float(error[:, :, :4].mean()), rel=1e-4)


def test_a_shift_is_zero_before_training_and_tells_the_concept_from_the_rest() -> None:
    task = tiny_task()
    found: list[list[float]] = []
    shifts: list[Shift] = []

    def watch(progress: Progress) -> bool:
        if not shifts:
            shifts.append(Shift(progress.run, ["ball", "tree"]))
            with progress.run.trainables.off():
                found.append(shifts[0].look(progress.run))
        found.append(shifts[0].look(progress.run))
        return False

    train(task, job(task, replace(QUICK, steps=30, rate=1e-4)), watch)
    assert found[0] == [0.0, 0.0]
    assert found[-1][0] > found[1][0] > 0
