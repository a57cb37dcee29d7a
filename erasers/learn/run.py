"""A plan at work on a model: features of roles, predictions of teacher and student, and the loss of a step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..algebra.hooks import hooked
from ..errors import SettingError
from ..model import Model
from ..task import Task
from .moment import AVERAGE, NULL, STUDENT, TEACHER, Ask, Features, Latents, Moment
from .plan import Plan, Schedule
from .trainables import Trainables

Item = TypeVar("Item")
_MOST = 16
"""Rows that go through the model at a time where no gradients are needed."""


class Run:
    """One training of one plan.

    Attributes:
        model, task, plan, schedule: what is trained, and how.
        trainables: the tensors in training.
        averages: their moving averages by name; empty where the schedule asks for none.
        generator: of everything random, on the CPU.
        memory: what blocks carry from step to step, by name; a run that goes on from a state has it again.
        pulse: is called before each prediction; what it raises ends the run.
        process: number of this process among those that train together; each draws its own steps.
        predictions: rows that went through the denoiser so far.
        step: number of the step at work, from 0.
    """

    def __init__(
        self,
        task: Task,
        plan: Plan,
        schedule: Schedule,
        seed: int,
        pulse: Callable[[], None] = lambda: None,
        process: int = 0,
    ) -> None:
        self.model: Model = task.loaded()
        self.task, self.plan, self.schedule, self.seed, self.pulse = task, plan, schedule, seed, pulse
        self.trainables: Trainables = plan.parameters.build(self.model, task.family, schedule.rank, self.fork("start"))
        self.generator = self.fork("steps", process)
        tensors = self.trainables.tensors
        tensors.update({name: tensor.to(self.model.device()) for name, tensor in tensors.items()})
        self.predictions, self.step = 0, 0
        self.averages: dict[str, Tensor] = {}
        if schedule.average:
            self.averages = {name: tensor.clone() for name, tensor in self.trainables.tensors.items()}
        self.memory: dict[str, Tensor] = {}
        self._made: dict[str, Features] = {}
        self._found: dict[int, Any] = {}

    def once(self, owner: object, make: Callable[[], Item]) -> Item:
        """What `make` gives, made at the first call for a block of the plan and kept."""
        if id(owner) not in self._found:
            self._found[id(owner)] = make()
        return self._found[id(owner)]

    def averaged(self) -> AbstractContextManager[None]:
        """The student acts with its moving average while the block runs."""
        return self.acting_as(self.averages)

    @contextmanager
    def acting_as(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """The student acts with other tensors of the same names while the block runs."""
        own = dict(self.trainables.tensors)
        self.trainables.tensors.update(tensors)
        try:
            yield
        finally:
            self.trainables.tensors.update(own)

    def fork(self, purpose: str, number: int = 0) -> torch.Generator:
        """A generator of its own for a purpose, the same in every process and however far training is."""
        name = f"{self.seed} {purpose} {number}"
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big"))

    @contextmanager
    def active(self, checkpoint: bool = False, bf16: bool = False) -> Iterator[None]:
        """The model is loaded and carries the trainables while the block runs; see `Model.ready`."""
        with ExitStack() as stack:
            stack.enter_context(self.model.ready(checkpoint, bf16))
            stack.enter_context(hooked(self.trainables.hooks))
            yield

    def features(self, prompts: Sequence[str], source: str = TEACHER) -> Features:
        """Features of prompts as the teacher's text encoder gives them, or the student's, with gradients."""
        if source == TEACHER or not self.trainables.text:
            with self.trainables.off():
                return Features.of(self.task.encode(list(prompts)))
        states, _ = self.model.tower().run(list(prompts))
        return Features(states)

    def of_role(self, ask: Ask, latents: Latents) -> Features:
        """Features of a role for every row of latents: those made for this step, or of the rows' own prompts."""
        if ask.role in self._made:
            return self._made[ask.role]
        try:
            prompts = [scene[ask.role] if ask.role != NULL else "" for scene in latents.scenes]
        except KeyError as error:
            raise SettingError(f"No prompt plays the role '{ask.role}'.", "Choose another recipe.") from error
        return self.features(prompts, ask.source)

    def student(self, latents: Latents, features: Features) -> Tensor:
        """The student's prediction, with gradients where they are on."""
        return self._predict(latents.x, latents.sigma, features)

    @torch.no_grad()
    def teacher(self, latents: Latents, features: Features) -> Tensor:
        """The prediction of the model before training."""
        with self.trainables.off():
            chunks = []
            for rows in torch.arange(len(latents.x)).split(_MOST):
                own = features.at(rows.tolist())
                chunks.append(self._predict(latents.x[rows], latents.sigma[rows], own))
            return torch.cat(chunks)

    def _predict(self, x: Tensor, sigma: Tensor, features: Features) -> Tensor:
        self.pulse()
        self.predictions += len(x)
        groups, said = features.alike(), []
        if len(groups) < 2:
            return self._together(x, sigma, features)
        for rows in groups:
            said.append(self._together(x[rows], sigma[rows], features.at(rows)))
        order = torch.tensor([row for rows in groups for row in rows])
        return torch.cat(said)[order.argsort()]

    def _together(self, x: Tensor, sigma: Tensor, features: Features) -> Tensor:
        beside = {"beside": features.stacked()} if features.beside else {}
        return self.model.predict(x, sigma, self.trainables.edit(features.states), features.pooled, **beside)

    def draw(self) -> Moment:
        """The latents of the next step."""
        moment: dict[str, Latents] = {}
        for source in self.plan.sources:
            moment |= source.draw(self, self.schedule.batch)
        return moment

    def make(self, moment: Moment) -> None:
        """Make the features that the plan's makers make, for a step's latents."""
        self._made = {}
        for role, maker in self.plan.makers.items():
            self._made[role] = maker.make(self, moment)

    def losses(self, moment: Moment) -> list[Tensor]:
        """The weighted losses of the plan's terms; inside `gradients()`, where their gradients are taken as well."""
        terms = self.plan.terms
        seen = self.seen([ask for term in terms for ask in term.asks()], moment)
        return [term.weight * term.loss(self, moment, seen) for term in terms]

    def seen(self, asks: Sequence[Ask], moment: Moment) -> dict[Ask, Tensor]:
        """Predictions by what asked for them: one pass of the model for each source."""
        found: dict[Ask, Tensor] = {}
        for ask in asks:
            known = moment[ask.at].known
            if ask.source == TEACHER and ask.role in known and ask.role not in self._made:
                found[ask] = known[ask.role]
        for source in dict.fromkeys(ask.source for ask in asks):
            missing = [ask for ask in dict.fromkeys(asks) if ask.source == source and ask not in found]
            if missing:
                found |= self._pass(source, missing, moment)
        return found

    def _pass(self, source: str, asks: Sequence[Ask], moment: Moment) -> Mapping[Ask, Tensor]:
        rows = [moment[ask.at] for ask in asks]
        joined = Latents(
            torch.cat([latents.x for latents in rows]), torch.cat([latents.sigma for latents in rows]), scenes=()
        )
        if source == STUDENT:
            features = Features.joined([self.of_role(ask, latents) for ask, latents in zip(asks, rows, strict=True)])
            said = self.student(joined, features)
        else:
            with torch.no_grad(), self.averaged() if source == AVERAGE else nullcontext():
                own = [self.of_role(ask, latents) for ask, latents in zip(asks, rows, strict=True)]
                features = Features.joined(own)
                said = self.teacher(joined, features) if source == TEACHER else self.student(joined, features)
        return dict(zip(asks, said.split([len(latents.x) for latents in rows]), strict=True))
