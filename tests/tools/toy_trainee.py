"""A tiny random UNet behind the demo world's text encoder, for tests of training that take milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.demo.gallery import Gallery
from lethe.erasers.demo.world import WEIGHTS
from lethe.erasers.diffusers_host import DiffusersModel
from lethe.erasers.learn.loop import Job
from lethe.erasers.learn.moment import NULL, TEACHER, Ask, Latents, Moment
from lethe.erasers.learn.run import Run
from lethe.erasers.registry import recipe_named
from lethe.erasers.task import Task
from torch import Tensor

BALL = ConceptList((Concept("ball", "box"),), preserve=("tree", "a green heart"))


@cache
def world() -> Gallery:
    """The demo world's parts."""
    return Gallery()


def tiny_model(prediction: str = "epsilon") -> DiffusersModel:
    """Two levels of 16 channels, cross-attention on both, 8x8 latents; the same weights every time."""
    torch.manual_seed(5)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=192,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()
    # Random attention hardly looks at the text; louder values make prompts tell.
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if name.endswith(("attn2.to_v.weight", "attn2.to_k.weight")):
                weight.mul_(8)
    scheduler = DDIMScheduler.from_pretrained(WEIGHTS / "scheduler", prediction_type=prediction)
    known = world().model
    return DiffusersModel(unet, scheduler, known.tokenizer, known.text_model)


def tiny_task(concepts: ConceptList = BALL, prediction: str = "epsilon", **given: Any) -> Task:
    """A task on a tiny model of its own."""
    model = tiny_model(prediction)
    return Task(concepts, model.family, world().encoder, model.encode, model, **given)


def shortened_settings(name: str, short: Mapping[str, int]) -> dict[str, int]:
    """Of `short`, the counts that a recipe has settings for, none below its minimum."""
    known = {parameter.name: parameter for parameter in recipe_named(name).spec.parameters}
    counts = {key for key in short if key in known and isinstance(known[key].default, int)}
    return {key: max(short[key], int(known[key].minimum)) for key in counts}


def job_of(name: str, task: Task, settings: Mapping[str, Any] | None = None, **schedule: Any) -> Job:
    """A job of a recipe with its schedule for small models, changed as given; of the bare name, unless told."""
    recipe = recipe_named(name)
    bare = {p.name: "none" for p in recipe.spec.parameters if p.name == "templates" and p.default == "scenes"}
    checked = recipe.spec.settings({**bare, **(settings or {})})
    return Job(name, checked, recipe.plan(task, checked), replace(recipe.small, **schedule), seed=3)


def run_of(job: Job, task: Task) -> Run:
    """A run that has not begun; use it inside `run.active()`."""
    return Run(task, job.plan, job.schedule, job.seed)


def distance(run: Run, moment: Moment, one: str, other: str = NULL, at: str = "x") -> float:
    """d(one, other): mean squared difference of the teacher's predictions for two roles."""
    latents: Latents = moment[at]
    first, second = (run.teacher(latents, run.of_role(Ask(TEACHER, role, at), latents)) for role in (one, other))
    return float((first - second).square().mean())


def gradient_names(run: Run, losses: list[Tensor]) -> set[str]:
    """Names of the trained tensors that the losses depend on."""
    total = torch.stack([loss for loss in losses if loss.requires_grad]).sum()
    names = list(run.trainables.tensors)
    grads = torch.autograd.grad(total, list(run.trainables.tensors.values()), allow_unused=True)
    return {name for name, gradient in zip(names, grads, strict=True) if gradient is not None}
