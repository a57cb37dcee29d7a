"""The training loop: the same for every recipe, model and prediction space."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..algebra.hooks import gradients
from ..errors import TrainingError
from ..provenance import recipe_of
from ..result import Eraser
from ..spec import Value
from ..task import Task
from .optimizer import make_optimizer, rate_at
from .plan import ERASE, KEEP, Plan, Schedule
from .run import Run

_SNAPSHOT = 25
"""Steps between two copies of the state that a run which goes wrong falls back on."""
_EXPLODED = 1e4
"""A loss this many times the largest of the first steps is beyond repair."""
_FIRST = 10


@dataclass(frozen=True)
class Progress:
    """What a watcher is told after each step.

    Attributes:
        step: steps done, from 1.
        steps: of the whole training.
        losses: of this step, by ERASE and KEEP.
        run: the run, to look at predictions with; inside `run.active()`.
    """

    step: int
    steps: int
    losses: Mapping[str, float]
    run: Run


Watch = Callable[[Progress], bool]
"""Is told after each step; returns whether training may end. What it raises ends the run."""


class Stopped(Exception):
    """Raised by a watcher to end training with what there is; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Trained:
    """What training gives.

    Attributes:
        eraser: the eraser; with `training` where the state was asked for.
        losses: of every step of this run, by ERASE and KEEP.
        steps: optimiser steps behind it, those before a resume included.
        predictions: rows that went through the denoiser.
        ended: why it ended early; "" where it ran to its end.
    """

    eraser: Eraser
    losses: Mapping[str, list[float]]
    steps: int
    predictions: int
    ended: str = ""


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        name: the recipe's name, for the eraser.
        settings: its checked settings.
        plan, schedule: what it made of them.
        seed: of everything random.
        resumed: an eraser to go on from, or None.
        keep_state: whether the eraser carries what a later run needs to go on.
        reduce: averages losses, gradients and what blocks remember over processes, in place; None for one process.
        process: number of this process among them.
        pulse: is called before each prediction; may raise `Stopped`, or whatever else ends the run.
        checkpoint, bf16: see `Model.ready`.
    """

    name: str
    settings: Mapping[str, Value]
    plan: Plan
    schedule: Schedule
    seed: int = 0
    resumed: Eraser | None = None
    keep_state: bool = False
    reduce: Callable[[list[Tensor]], None] | None = None
    process: int = 0
    pulse: Callable[[], None] = lambda: None
    checkpoint: bool = False
    bf16: bool = False


def train(task: Task, job: Job, watch: Watch = lambda progress: False) -> Trained:
    """Run a plan on a task's model, which is as before when this returns or raises.

    Not in inference mode.

    Args:
        watch: is told after each step; may end training.

    Raises:
        TrainingError: the loss is not finite at the first step, or the eraser to go on from does not fit.
        FamilyError: the model has no place for what the recipe trains.
    """
    _check_resumed(task, job)
    run = Run(task, job.plan, job.schedule, job.seed, job.pulse, job.process)
    with torch.no_grad(), run.active(job.checkpoint, job.bf16):
        return _Loop(run, job, watch).go()


@dataclass
class _Loop:
    run: Run
    job: Job
    watch: Watch
    losses: dict[str, list[float]] = field(default_factory=lambda: {ERASE: [], KEEP: []})
    highest: float = 0.0
    ended: str = ""

    def __post_init__(self) -> None:
        self.names = list(self.run.trainables.tensors)
        self.leaves = [tensor.requires_grad_() for tensor in self.run.trainables.tensors.values()]
        self.optimizer = make_optimizer(self.leaves, self.job.schedule)
        self.masks: Mapping[str, Tensor] = {}
        if self.job.resumed is not None:
            self._load(self.job.resumed.training)

    def go(self) -> Trained:
        run, schedule = self.run, self.job.schedule
        if self.job.plan.mask is not None:
            try:
                self.masks = self.job.plan.mask(run)
            except Stopped as stop:
                self.ended = stop.reason
        good = self._state()
        while run.step < schedule.steps and not self.ended:
            drawn, memory = run.generator.get_state(), dict(run.memory)
            try:
                values = self._step()
            except Stopped as stop:
                # The step never happened: a run that goes on from here draws the same once more.
                run.generator.set_state(drawn)
                run.memory, self.ended = memory, stop.reason
                break
            total = sum(values.values())
            if not math.isfinite(total) or (len(self.losses[ERASE]) >= _FIRST and total > _EXPLODED * self.highest):
                self._fall_back(good, total)
                break
            if len(self.losses[ERASE]) < _FIRST:
                self.highest = max(self.highest, abs(total), 1e-6)
            for aim, value in values.items():
                self.losses[aim].append(value)
            run.step += 1
            if run.step % _SNAPSHOT == 0:
                good = self._state()
            self._tell(values)
        return self._result()

    def _tell(self, values: Mapping[str, float]) -> None:
        try:
            if self.watch(Progress(self.run.step, self.job.schedule.steps, values, self.run)):
                self.ended = "the watcher had seen enough"
        except Stopped as stop:
            self.ended = stop.reason

    def _step(self) -> dict[str, float]:
        """One optimiser step; the losses by aim, before it."""
        run, schedule = self.run, self.job.schedule
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(run.step, schedule)
        moment, plan = run.draw(), self.job.plan
        run.make(moment)
        values = {ERASE: 0.0, KEEP: 0.0}
        with gradients(run.model.in_place):
            terms = run.losses(moment)
            penalties = [penalty(run.trainables) for penalty in plan.penalties]
            for aim, loss in [*zip((t.aim for t in plan.terms), terms, strict=True), *((KEEP, p) for p in penalties)]:
                values[aim] += float(loss.detach())
            values = self._averaged(values)
            if math.isfinite(sum(values.values())):
                self._apply(self._gradients(terms, penalties))
        self._share_memory()
        return values

    def _share_memory(self) -> None:
        """What blocks carry from step to step, an adversary's tensors for instance, averaged over all processes.

        Blocks name what they carry alike in every process, and step together.
        """
        if self.job.reduce is None:
            return
        memory, device = self.run.memory, self.run.model.device()
        for name in sorted(name for name, tensor in memory.items() if tensor.is_floating_point()):
            own = memory[name].detach().to(device, copy=True)
            self.job.reduce([own])
            memory[name] = own.to(memory[name].device)

    def _averaged(self, values: dict[str, float]) -> dict[str, float]:
        """The same losses in every process, so that all of them end together."""
        if self.job.reduce is None:
            return values
        own = torch.tensor(list(values.values()), dtype=torch.float64, device=self.run.model.device())
        self.job.reduce([own])
        return dict(zip(values, own.tolist(), strict=True))

    def _gradients(self, terms: list[Tensor], penalties: list[Tensor]) -> list[Tensor | None]:
        plan = self.job.plan

        def gradient(losses: list[Tensor]) -> list[Tensor | None]:
            own = [loss.float() for loss in losses if loss.requires_grad]
            if not own:
                return [None] * len(self.leaves)
            total, keep = torch.stack(own).sum(), plan.surgery is not None
            return list(torch.autograd.grad(total, self.leaves, retain_graph=keep, allow_unused=True))

        if plan.surgery is None:
            return gradient([*terms, *penalties])
        erasing, keeping = (
            [t for t, own in zip(terms, plan.terms, strict=True) if own.aim == aim] for aim in (ERASE, KEEP)
        )
        return plan.surgery(gradient([*erasing, *penalties]), gradient(keeping))

    @torch.no_grad()
    def _apply(self, grads: list[Tensor | None]) -> None:
        schedule = self.job.schedule
        for name, leaf, gradient in zip(self.names, self.leaves, grads, strict=True):
            leaf.grad = None if gradient is None else gradient * self.masks.get(name, 1.0)
        if self.job.reduce is not None:
            self.job.reduce([leaf.grad for leaf in self.leaves if leaf.grad is not None])
        if schedule.clip:
            torch.nn.utils.clip_grad_norm_(self.leaves, schedule.clip)
        self.optimizer.step()
        for name, average in self.run.averages.items():
            average.lerp_(self.run.trainables.tensors[name], 1 - schedule.average)

    def _fall_back(self, good: Mapping[str, Tensor], total: float) -> None:
        step = self.run.step + 1
        if not self.losses[ERASE]:
            raise TrainingError(
                f"The loss is {total} at step {step}, before anything was learned.",
                "Check the model and its precision, or lower the learning rate.",
            )
        self._load(good)
        self.ended = f"the loss was {total:g} at step {step}; what step {self.run.step} had learned is kept"

    def _state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        run = self.run
        found = {f"tensor.{name}": tensor.detach().clone() for name, tensor in run.trainables.tensors.items()}
        found |= {f"average.{name}": tensor.clone() for name, tensor in run.averages.items()}
        for index, entries in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{index}.{key}": torch.as_tensor(v).clone() for key, v in entries.items()}
        found |= {f"memory.{name}": tensor.detach().clone() for name, tensor in run.memory.items()}
        found["generator"] = run.generator.get_state()
        found["step"], found["highest"] = torch.tensor(run.step), torch.tensor(self.highest)
        return {name: tensor.cpu() for name, tensor in found.items()}

    def _load(self, state: Mapping[str, Tensor]) -> None:
        run = self.run
        shapes = {f"tensor.{name}": tensor.shape for name, tensor in run.trainables.tensors.items()}
        if any(name not in state or state[name].shape != shape for name, shape in shapes.items()):
            raise TrainingError(
                "This eraser holds no state that this recipe can go on from.",
                "Train it with 'keep state' on, and go on with the same recipe, settings and rank.",
            )
        for name, leaf in zip(self.names, self.leaves, strict=True):
            leaf.data.copy_(state[f"tensor.{name}"])
        for name, average in run.averages.items():
            average.copy_(state[f"average.{name}"])
        entries: dict[int, dict[str, Any]] = {}
        for name in state:
            part, _, rest = name.partition(".")
            if part == "optimizer":
                index, _, key = rest.partition(".")
                entries.setdefault(int(index), {})[key] = state[name].clone()
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": entries})
        run.memory = {n.removeprefix("memory."): t.clone() for n, t in state.items() if n.startswith("memory.")}
        run.generator.set_state(state["generator"])
        run.step, self.highest = int(state["step"]), float(state["highest"])

    def _result(self) -> Trained:
        run, job = self.run, self.job
        with run.averaged():
            parts: Mapping[str, Any] = run.trainables.parts({n: t.detach() for n, t in run.trainables.tensors.items()})
        told = "rate", "course", "optimizer", "batch", "rank"
        schedule = {"steps": run.step, **{name: getattr(job.schedule, name) for name in told}}
        recipe = recipe_of(job.name, {**job.settings, **schedule}, run.task, job.seed)
        eraser = Eraser(recipe, **parts, training=self._state() if job.keep_state else {})
        return Trained(eraser, self.losses, run.step, run.predictions, self.ended)


def _check_resumed(task: Task, job: Job) -> None:
    """Refuse to go on from an eraser that another recipe, other settings or other concepts made."""
    if job.resumed is None:
        return
    made, wanted = job.resumed.recipe, recipe_of(job.name, job.settings, task)
    same_settings = all(made.settings.get(name) == value for name, value in job.settings.items())
    # What was read from a file has lists for tuples.
    same_concepts = json.dumps(made.concepts) == json.dumps(wanted.concepts)
    if made.method != wanted.method or not same_settings or not same_concepts:
        raise TrainingError(
            f"The eraser to go on from was made by '{made.method}' with other settings or concepts.",
            "Go on with the recipe, settings and concepts that it was begun with.",
        )


def shortened(schedule: Schedule, steps: int, rate: float, rank: int) -> Schedule:
    """A schedule with the user's steps, rate and rank where they are not 0."""
    return replace(schedule, steps=steps or schedule.steps, rate=rate or schedule.rate, rank=rank or schedule.rank)
