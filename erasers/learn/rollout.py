"""Latents from the sampler itself: noise, denoised under a prompt up to some level.

A deterministic DDIM rollout is Euler's method in units of sigma, for models that predict flow as well. What comes
back is a matched pair: latents, and the very level that they are at.

A rollout of the teacher depends on nothing that is trained. So whole trajectories are kept and drawn from: N steps
give N latents, and the guided predictions that made them are the teacher's predictions that most targets need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..model import Model
from ..target import Track, untracked
from .law import Law
from .moment import AVERAGE, CONCEPT, MAIN, NULL, TEACHER, Features, Latents, Scene
from .run import Run
from .scenes import by_turns
from .space import denoised_from, wide

_ROWS = 8
"""Trajectories that are rolled out at a time."""
Says = Callable[[Run, Sequence[Scene]], Features]


@dataclass(frozen=True)
class Rollout:
    """Latents of rollouts under a prompt of each scene.

    Attributes:
        scenes: the prompts; each trajectory takes one.
        cfg: guidance scale.
        steps: N, steps of a whole rollout.
        who: TEACHER, STUDENT or AVERAGE; only the teacher's are kept.
        role: what is rolled out; against: the other side of the guidance.
        kept: trajectories of the teacher that are kept and drawn from, one of each name at least; 0 to roll out anew
            at every step, up to the level that is drawn, as the published programs do.
        zones: the parts of the trajectory that latents are drawn from, by the latents' name, as shares of its steps.
        law: of the times in those parts; None for every step alike.
        says: gives the features that it is rolled out under, where no prompt has them; None for the role's prompts.
        looked: further roles whose predictions the teacher gives once for all latents that are kept; worth it where
            more rows are drawn in all than there are latents.
    """

    scenes: tuple[Scene, ...]
    cfg: float = 3.0
    steps: int = 50
    who: str = TEACHER
    role: str = CONCEPT
    against: str = NULL
    kept: int = 16
    zones: Mapping[str, tuple[float, float]] | None = None
    law: Law | None = None
    says: Says | None = None
    looked: tuple[str, ...] = ()

    def draw(self, run: Run, rows: int) -> Mapping[str, Latents]:
        places = {name: self._places(run, zone, rows) for name, zone in (self.zones or {MAIN: (0.0, 1.0)}).items()}
        if self.who == TEACHER and self.kept:
            return self._from_kept(run, places, rows)
        chosen = torch.randint(len(self.scenes), (rows,), generator=run.generator).tolist()
        scenes = tuple(self.scenes[i] for i in chosen)
        noise = torch.randn(rows, *run.model.latent_shape(), generator=run.generator)
        last = max(int(at.max()) for at in places.values())
        path = self._roll(run, noise, scenes, last)
        return {name: path.at(torch.arange(rows), at) for name, at in places.items()}

    def _places(self, run: Run, zone: tuple[float, float], rows: int) -> Tensor:
        low = round(zone[0] * self.steps)
        high = max(low + 1, round(zone[1] * self.steps))
        if self.law is not None:
            return low + (self.law(rows, run.generator) * (high - low)).long().clamp(max=high - low - 1)
        return torch.randint(low, high, (rows,), generator=run.generator)

    def _from_kept(self, run: Run, places: Mapping[str, Tensor], rows: int) -> Mapping[str, Latents]:
        path = run.once(self, lambda: self._trajectories(run))
        chosen = torch.randint(len(path.scenes), (rows,), generator=run.generator)
        return {name: path.at(chosen, at) for name, at in places.items()}

    def _trajectories(self, run: Run) -> Path:
        generator = run.fork(f"rollout {self.role}")
        order = torch.randperm(len(self.scenes), generator=generator).tolist()
        scenes = by_turns([self.scenes[i] for i in order], self.kept)
        noise = torch.randn(len(scenes), *run.model.latent_shape(), generator=generator)
        last = max(round(high * self.steps) for _, high in (self.zones or {MAIN: (0.0, 1.0)}).values()) - 1
        track, parts = run.task.track, in_parts(len(scenes))
        path = Path.joined([self._roll(run, noise[p], scenes[p], last, track) for p in track(parts, len(parts))])
        return replace(path, known={**{role: self._look(run, path, role) for role in self.looked}, **path.known})

    def _look(self, run: Run, path: Path, role: str) -> Tensor:
        """The teacher's predictions of a role for all latents of trajectories, `[p, k, c, h, w]`."""
        features, rows = self._features(run, path.scenes, role), len(path.scenes)
        levels = zip(path.x.unbind(1), path.sigmas, strict=True)
        return torch.stack([run.teacher(Latents(x, sigma.expand(rows), ()), features) for x, sigma in levels], 1)

    def _roll(self, run: Run, noise: Tensor, scenes: tuple[Scene, ...], last: int, track: Track = untracked) -> Path:
        """The latents of every step up to `last`, and the teacher's predictions there where it is the teacher's."""
        sigmas = levels(run.model, self.steps)
        steps, known = [], []

        def keep(x: Tensor, own: tuple[Tensor, Tensor]) -> None:
            steps.append(x)
            known.append(own)

        look = run.teacher if self.who == TEACHER else run.student
        with torch.no_grad(), run.averaged() if self.who == AVERAGE else nullcontext():
            said = self.says(run, scenes) if self.says else self._features(run, scenes, self.role)
            unsaid = self._features(run, scenes, self.against)
            roll(run.model, look, noise * sigmas[0], sigmas[: last + 2], said, unsaid, self.cfg, keep, track)
        parts = {} if self.who != TEACHER else {self.against: 1} if self.says else {self.role: 0, self.against: 1}
        stacked = {role: torch.stack([pair[index] for pair in known], 1) for role, index in parts.items()}
        return Path(torch.stack(steps, 1), sigmas[: len(steps)], noise, scenes, stacked)

    def _features(self, run: Run, scenes: tuple[Scene, ...], role: str) -> Features:
        return run.features([scene.get(role, "") for scene in scenes], self.who)


@dataclass(frozen=True)
class Path:
    """Trajectories: latents `[p, k, c, h, w]`, levels `[k]`, start noise, scenes, and predictions by role."""

    x: Tensor
    sigmas: Tensor
    noise: Tensor
    scenes: tuple[Scene, ...]
    known: Mapping[str, Tensor]

    @classmethod
    def joined(cls, parts: Sequence[Path]) -> Path:
        """Trajectories of several, one after the other."""
        known = {role: torch.cat([part.known[role] for part in parts]) for role in parts[0].known}
        scenes = tuple(scene for part in parts for scene in part.scenes)
        x, noise = (torch.cat(tensors) for tensors in zip(*((part.x, part.noise) for part in parts), strict=True))
        return cls(x, parts[0].sigmas, noise, scenes, known)

    def at(self, chosen: Tensor, places: Tensor) -> Latents:
        """The latents of chosen trajectories at a place of each."""
        known = {role: tensor[chosen, places] for role, tensor in self.known.items()}
        scenes = tuple(self.scenes[i] for i in chosen.tolist())
        return Latents(self.x[chosen, places], self.sigmas[places], scenes, noise=self.noise[chosen], known=known)


def in_parts(count: int) -> list[slice]:
    """The trajectories that are rolled out at a time."""
    return [slice(start, min(count, start + _ROWS)) for start in range(0, count, _ROWS)]


def levels(model: Model, steps: int) -> Tensor:
    """The levels of a rollout, falling, `[steps + 1]`; the last is 0."""
    return torch.cat([model.level(torch.arange(steps) / steps), torch.zeros(1)])


def roll(
    model: Model,
    look: Callable[[Latents, Features], Tensor],
    x: Tensor,
    sigmas: Tensor,
    said: Features,
    unsaid: Features,
    cfg: float,
    on_step: Callable[[Tensor, tuple[Tensor, Tensor]], None] | None = None,
    track: Track = untracked,
) -> Tensor:
    """Euler's method along `sigmas` with guidance, from latents `x` `[n, c, h, w]` at `sigmas[0]`.

    Args:
        look: predicts for latents and features.
        on_step: is told the latents before each step, and the predictions with and without the prompt there.
        track: goes through the steps; what it raises ends the rollout.
    """
    kind, both = model.prediction(), Features.joined([said, unsaid])
    steps = list(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True))
    for now, following in track(steps, len(steps)):
        level = torch.full((2 * len(x),), now)
        own, other = look(Latents(torch.cat([x, x]), level, ()), both).chunk(2)
        if on_step is not None:
            on_step(x, (own, other))
        denoised = denoised_from(kind, x, level[: len(x)], other + cfg * (own - other))
        x = denoised + (x - denoised) * wide(torch.full((len(x),), following / now), x)
    return x
