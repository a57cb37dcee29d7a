"""Parameterisations: nothing at the start, the same in training as from the eraser, and in its smallest form."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lethe.erasers.diffusers_host import DiffusersModel, attach_modules, write_eraser, write_text_edits
from lethe.erasers.errors import FamilyError
from lethe.erasers.learn.bottleneck import Bottlenecks
from lethe.erasers.learn.full import Full, stored
from lethe.erasers.learn.low_rank import LowRank
from lethe.erasers.learn.moment import STUDENT, Latents
from lethe.erasers.learn.operator import Operator
from lethe.erasers.learn.plan import Plan, Schedule
from lethe.erasers.learn.run import Run
from lethe.erasers.learn.scenes import scene
from lethe.erasers.learn.trainables import TEXT, Parameterisation
from lethe.erasers.learn.where import denoiser_layers
from lethe.erasers.provenance import recipe_of
from lethe.erasers.registry import families
from lethe.erasers.result import Eraser
from lethe.erasers.store.eraser_file import load_eraser, save_eraser
from toy_trainee import tiny_task

CHOICES: dict[str, Parameterisation] = {
    "low rank": LowRank("blocks"),
    "low rank, everything": LowRank("all", alpha=0.0),
    "full": Full("cross-kv"),
    "full, everything": Full("all"),
    "operator": Operator(),
    "bottlenecks": Bottlenecks(),
    "text": LowRank("all", part=TEXT),
    "text, full": Full("mlp + last attention", part=TEXT),
}


def begun(parameters: Parameterisation, task: Any) -> Run:
    return Run(task, Plan(parameters, (), ()), Schedule(1, 1.0, rank=3), seed=0)


def look(run: Run, prompt: str = "ball") -> torch.Tensor:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    latents = Latents(x, torch.tensor([2.0, 0.5]), (scene(prompt),) * 2)
    with torch.no_grad(), run.active():
        return run.student(latents, run.features([prompt] * 2, STUDENT))


def shaken(run: Run) -> None:
    for number, tensor in enumerate(run.trainables.tensors.values()):
        tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number)))


@pytest.mark.parametrize("name", CHOICES)
def test_at_the_start_the_student_is_the_teacher_to_the_bit(name: str) -> None:
    task = tiny_task()
    run = begun(CHOICES[name], task)
    first = look(run)
    with run.trainables.off():
        assert torch.equal(look(run), first)


@pytest.mark.parametrize("name", CHOICES)
def test_the_eraser_does_what_the_student_does(name: str, tmp_path: Any) -> None:
    task = tiny_task()
    run = begun(CHOICES[name], task)
    untouched = look(run)
    shaken(run)
    student = look(run)
    assert float((student - untouched).norm() / untouched.norm()) > 1e-3
    eraser = Eraser(recipe_of("x", {}, task), **run.trainables.parts(run.trainables.tensors))
    save_eraser(eraser, tmp_path / "e.safetensors")
    eraser = load_eraser(tmp_path / "e.safetensors")
    model: Any = task.model
    unet, text = copy.deepcopy(model.unet), copy.deepcopy(model.text_model)
    unet.load_state_dict(write_eraser(unet, eraser, context=False), strict=False)
    attach_modules(unet, eraser)
    edited = write_text_edits(text, "clip_l", eraser)
    from lethe.erasers.diffusers_host import named_tower

    named_tower(text).load_state_dict(edited, strict=False)
    applied = DiffusersModel(unet, model.scheduler, model.tokenizer, text, operator=eraser.context.get("clip_l"))
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        found = applied.predict(x, torch.tensor([2.0, 0.5]), applied.context(["ball"] * 2))
    assert torch.allclose(found, student, atol=2e-4 * float(student.abs().max()))


def test_rank_and_scale_are_as_asked() -> None:
    run = begun(LowRank("cross-kv", alpha=2.0), tiny_task())
    shaken(run)
    edits = run.trainables.parts(run.trainables.tensors)["adapters"]
    name = next(iter(edits))
    up = run.trainables.tensors[f"{name.removesuffix('.weight')}.up"]
    assert edits[name].down.shape[0] == 3
    assert torch.allclose(edits[name].up, up * 2 / 3)


def test_groups_that_hardly_act_are_left_out() -> None:
    run = begun(LowRank("ff", smallest=1e3), tiny_task())
    assert run.trainables.parts(run.trainables.tensors)["adapters"] == {}
    assert all(len(names) % 2 == 0 for names in run.trainables.groups.values())


def test_a_difference_is_stored_as_factors_only_where_that_is_smaller_and_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(40, 3, generator=generator), torch.randn(3, 30, generator=generator)
    edit = stored(up @ down)
    assert edit.down is not None
    assert edit.up is not None
    assert edit.down.shape == (3, 30)
    assert torch.allclose(edit.up @ edit.down, up @ down, atol=1e-4)
    assert stored(torch.randn(40, 30, generator=generator)).dense is not None


def test_no_layers_is_an_error() -> None:
    model: Any = tiny_task().model
    model.modules = lambda pattern: {}
    with pytest.raises(FamilyError, match="no layers"):
        denoiser_layers(model, "cross", families()["demo"])


def test_a_moving_average_stands_in_for_the_student() -> None:
    task = tiny_task()
    run = Run(task, Plan(Full("cross"), (), ()), Schedule(1, 1.0, average=0.9), seed=0)
    untouched = look(run)
    shaken(run)
    assert not torch.allclose(look(run), untouched)
    with run.averaged():
        assert torch.equal(look(run), untouched)
    assert not torch.allclose(look(run), untouched)
