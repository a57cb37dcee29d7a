"""`python -m lethe train`: an eraser by a training recipe, in one process or in several that share the work.

The same behind `accelerate launch --num_processes 4 -m lethe train ...` trains in four processes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..arguments import (
    DEMO,
    add_concepts,
    add_output,
    add_pipeline,
    add_settings,
    check_free,
    concepts_of,
    device_of,
    open_pipeline,
    settings_of,
)
from ..learn.loop import Job, Progress, Trained, shortened, train
from ..measure.summary import summarise
from ..progress import progress_bar
from ..registry import recipe_named, recipes
from ..store.eraser_file import load_eraser, save_eraser
from ..task import Task


class Train:
    """Fulfils `commands.Command`."""

    name = "train"
    help = "Train an eraser by a published recipe, in one process or, behind 'accelerate launch', in several."

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_pipeline(parser)
        parser.add_argument("--recipe", default="esd", help=f"{', '.join(recipes())}; esd when left out")
        add_concepts(parser)
        add_settings(parser, "recipe")
        for name, kind in (("steps", int), ("rate", float), ("rank", int), ("batch", int)):
            parser.add_argument(f"--{name}", type=kind, default=0, help="0 for the recipe's own")
        parser.add_argument("--seed", type=int, default=0, help="of everything random")
        parser.add_argument("--resume", type=Path, metavar="FILE", help="an eraser to go on from")
        parser.add_argument("--keep-state", action="store_true", help="so that training can go on later")
        parser.add_argument("--checkpoint", action="store_true", help="far less memory, a third slower")
        parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
        add_output(parser, "the eraser's file, .safetensors")

    def run(self, arguments: argparse.Namespace) -> str:
        check_free([arguments.out], arguments.overwrite)
        concepts = concepts_of(arguments)
        settings = settings_of(arguments.set, recipe_named(arguments.recipe).spec)
        resumed = load_eraser(arguments.resume) if arguments.resume else None
        device, process, reduce = _processes(device_of(arguments))
        task = open_pipeline(arguments, device).task(concepts)
        job = _job(arguments, task, settings)
        found = _watched(task, replace(job, resumed=resumed, reduce=reduce, process=process))
        if process:
            return ""
        with torch.no_grad():
            said = summarise(found.eraser, task)
        save_eraser(found.eraser, arguments.out)
        ended = f" Ended early: {found.ended}." if found.ended else ""
        return (
            f"{found.steps} steps, {found.predictions} predictions of one picture each.{ended}\n{said}\n{arguments.out}"
        )


def _job(arguments: argparse.Namespace, task: Task, settings: Any) -> Job:
    recipe = recipe_named(arguments.recipe)
    own = recipe.small if task.family.name == DEMO else recipe.schedule
    schedule = shortened(own, arguments.steps, arguments.rate, arguments.rank)
    return Job(
        recipe.spec.name,
        settings,
        recipe.plan(task, settings),
        replace(schedule, batch=arguments.batch or schedule.batch),
        arguments.seed,
        keep_state=arguments.keep_state,
        checkpoint=arguments.checkpoint,
        bf16=arguments.bf16,
    )


def _watched(task: Task, job: Job) -> Trained:
    """Train with a bar, which the first process alone shows."""
    with ExitStack() as stack:
        step = stack.enter_context(progress_bar(job.schedule.steps)) if job.process == 0 else lambda: None

        def watch(progress: Progress) -> bool:
            step()
            return False

        return train(task, job, watch)


def _processes(device: torch.device) -> tuple[torch.device, int, Callable[[list[Tensor]], None] | None]:
    """This process's device and number, and what averages tensors over all of them; `device` where it is alone."""
    try:
        from accelerate import Accelerator
    except ImportError:
        return device, 0, None
    accelerator = Accelerator(cpu=device.type == "cpu")
    if accelerator.num_processes == 1:
        return device, 0, None

    def reduce(tensors: list[Tensor]) -> None:
        for tensor in tensors:
            averaged: Any = accelerator.reduce(tensor, reduction="mean")
            tensor.copy_(averaged)

    return accelerator.device, accelerator.process_index, reduce


COMMAND = Train()
