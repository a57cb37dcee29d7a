"""Latents that guards move by a gradient, before the model looks at them (`erasers.nudge`).

A sampler keeps its own latents. As it is linear in them and in what it is told is denoised, latents that differ from
its own by sigma times a constant stay so from step to step: the constant is the noise that the guards have added. So
what is kept between steps is that noise, and every look at a step is one at the moved latents. This is exact for
samplers that add no noise of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import torch
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors

from ...erasers.errors import GuardError
from ...erasers.learn.space import wide
from ...erasers.measure.heat import word_shares
from ...erasers.nudge import Nudge, Words
from .acting import OVERRIDE, behind, feature_size
from .ordinary import make_ordinary, ordinary

_WATCHING = "lethe.nudging"
_DEVICES = "multigpu_clones"
"""The host's option for models on further devices."""
_REDUCTION = 4
"""How many times smaller than the latents the features are, best, whose attention counts."""
Read = Callable[[Any, UUID], Sequence[Words | None]]


@dataclass(frozen=True, eq=False)
class _Attention:
    """One cross-attention that passed: queries and keys `[n, places or tokens, width]`, and what goes with them."""

    q: Tensor
    k: Tensor
    heads: int
    size: tuple[int, int]
    reduction: float
    options: Mapping[str, Any]


@dataclass(eq=False)
class _Watch:
    """What passed in one look; the host copies lists among its options, and not this."""

    passed: list[_Attention] = field(default_factory=list)


@dataclass(eq=False)
class Nudged:
    """What guards have moved in one sampling.

    Attributes:
        read: what a guard made of the tokens of a condition, row by row; None for rows that it does not act on.
        noise: what was added, in units of noise; None for nothing.
        last: the level of the last step.
        memory: what losses left, by guard, condition and row.
    """

    read: Read
    noise: Tensor | None = None
    last: float = math.inf
    memory: dict[Any, dict[str, Tensor]] = field(default_factory=dict)

    def look(
        self,
        executor: Callable[..., Any],
        parts: Sequence[tuple[Any, Nudge]],
        given: tuple[Any, list[Any], Tensor, Tensor, dict[str, Any]],
        percent: float,
    ) -> Tensor:
        """Latents as the model shall see them.

        Args:
            given: what the executor takes: model, prompts (the picture's own alone), latents, levels, options.
        """
        model, said, x, timestep, options = given
        sigma = float(timestep.flatten()[0])
        if sigma > self.last:
            self.noise, self.memory = None, {}
        fresh, self.last = sigma != self.last, sigma
        seen = x if self.noise is None else x + wide(timestep, x) * self.noise
        for guard, part in parts:
            if not fresh or not part.window.holds(percent):
                continue
            for _ in range(part.rounds):
                found = self._gradient(executor, guard, part, (model, said, seen, timestep, options))
                if found is not None:
                    seen = part.moved(seen, timestep, found, percent)
                    self.noise = (seen - x) / wide(timestep, x)
        return seen

    def _gradient(self, executor: Callable[..., Any], guard: Any, part: Nudge, given: Any) -> Tensor | None:
        """The gradient of a guard's loss, 0 where it does not act; None where it acts on nothing."""
        model, said, x, timestep, options = given
        if not any(words for cond in said for words in self.read(guard, cond["uuid"])):
            return None
        seen = _Watch()
        # The host splits prompts over devices without gradients: here one device has them all.
        told = {name: own for name, own in options.items() if name != _DEVICES}
        told["transformer_options"] = {**options.get("transformer_options", {}), _WATCHING: seen}
        nets = _control_nets(said)
        # The host adds what control nets give in place, to features that gradients need as they were.
        mutable = allow_mutation_on_saved_tensors() if nets else nullcontext()
        with ordinary(model, *nets), torch.enable_grad(), mutable:
            for module in (model, *nets):
                make_ordinary(module)
            own = x.detach().clone().requires_grad_()
            executor(model, [said], own, timestep.clone(), told)
            loss = self._loss(guard, part, _chosen(seen.passed), len(x))
            (gradient,) = torch.autograd.grad(loss, own)
        return gradient.nan_to_num()

    def _loss(self, guard: Any, part: Nudge, passed: Sequence[_Attention], pictures: int) -> Tensor:
        """The sum over all pictures and conditions."""
        maps: dict[tuple[UUID, int], list[Tensor]] = {}
        told: dict[tuple[UUID, int], Words] = {}
        for one in passed:
            each = len(one.q) // len(one.options["uuids"])
            for chunk, uuid in enumerate(one.options["uuids"]):
                read = self.read(guard, uuid)
                for picture in range(pictures if read else 0):
                    words = read[picture % len(read)]
                    if words is not None:
                        told[uuid, picture] = words
                        maps.setdefault((uuid, picture), []).append(_maps(one, chunk * each + picture, words))
        losses = []
        for key, own in maps.items():
            named = torch.tensor(told[key].named, device=own[0].device)
            losses.append(part.loss(torch.stack(own).mean(0), named, self.memory.setdefault((guard, *key), {})))
        return torch.stack(losses).sum()


def watch(options: dict[str, Any]) -> None:
    """Let cross-attention be seen in the sampling whose transformer options these are."""
    before = options.get(OVERRIDE)

    def override(func: Callable[..., Tensor], q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        told = kwargs.get("transformer_options") or {}
        seen: _Watch | None = told.get(_WATCHING)
        # As many keys as places is self-attention.
        if seen is not None and q.shape[1] != k.shape[1]:
            heads = kwargs["heads"] if "heads" in kwargs else args[1]
            size = feature_size(told, q.shape[1])
            seen.passed.append(_Attention(q, k, heads, size, told["original_shape"][-2] / size[0], dict(told)))
        return behind(func, before)(q, k, *args, **kwargs)

    options[OVERRIDE] = override


def _control_nets(said: Sequence[Mapping[str, Any]]) -> list[nn.Module]:
    """Those that conditions bring along; gradients pass them too."""
    controls = [cond["control"] for cond in said if cond.get("control") is not None]
    return [patcher.model for control in controls for patcher in control.get_models()]


def _chosen(passed: Sequence[_Attention]) -> Sequence[_Attention]:
    """The layers whose features are nearest to the best size."""
    if not passed:
        raise GuardError("No cross-attention was seen.", "Use a UNet, such as SD 1, SD 2 or SDXL, or another guard.")
    best = min((one.reduction for one in passed), key=lambda r: abs(math.log(r / _REDUCTION)))
    return [one for one in passed if one.reduction == best]


def _maps(one: _Attention, row: int, words: Words) -> Tensor:
    """How much of one row's attention each of a prompt's own tokens gets, `[t, h, w]`."""
    # Prompts of different length in one batch are repeated to a common one: a word is then there several times.
    copies = one.k.shape[1] // words.tokens
    places = [[place + copy * words.tokens for copy in range(copies)] for place in words.places]
    shares = copies * word_shares(one.q[row], one.k[row], one.heads, None, places)
    return shares.unflatten(-1, one.size)
