"""A timed negative prompt, after Ban et al. (arXiv 2406.02965): when a negative prompt acts decides what it does.

    eps = eps_n + w (eps_p - eps_n)   in the window,   eps = eps_u + w (eps_p - eps_u)   outside of it

A negative acts only once the prompt has drawn the thing, by cancelling it. From the first step on it may even seed it.
So a late start keeps the rest of the picture. To keep a concept out whatever the prompt, start at 0. The paper tells
its windows in steps of its own samplers; the ones here are ours.
No official code was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..guard import Guarding, Look, guarded_names
from ..spec import MethodSpec, Parameter, Value
from ..task import Task
from ..window import window_of, window_settings

INSTEAD, BESIDE = "instead", "beside"


@dataclass(frozen=True)
class TimedNegative:
    """The mix: the concept's prediction in place of the negative's, or the mean of both."""

    prompt: str
    beside: bool

    def __call__(self, look: Look) -> tuple[Tensor, Tensor]:
        own = look.seen[self.prompt]
        return look.said, (look.unsaid + own) / 2 if self.beside else own


class Negative:
    """Puts the concepts into the negative prompt for a part of sampling."""

    needs = "Needs guidance (CFG above 1). Beside the negative prompt: one prediction more per step, in its window."
    spec = MethodSpec(
        name="negative",
        title="Timed negative prompt",
        paper="Ban et al., Understanding the Impact of Negative Prompts: When and How Do They Take Effect?, ECCV 2024 "
        "(arXiv 2406.02965)",
        summary="Makes the concept the negative prompt, for a part of sampling.",
        families=("demo",),
        parameters=(
            *window_settings(
                0.0, "0 keeps a concept out, about 0.15 takes it out of a picture whose layout shall stay"
            ),
            Parameter(
                "against",
                INSTEAD,
                "Whether the concept stands in the place of the negative prompt that is connected (instead), or counts "
                "for half beside it. Start with instead.",
                choices=(INSTEAD, BESIDE),
            ),
        ),
    )

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Guarding:
        """One prompt more: the concepts' names."""
        names = guarded_names(task)
        prompt = ", ".join(names)
        return Guarding(
            (prompt,),
            TimedNegative(prompt, settings["against"] == BESIDE),
            window_of(settings),
            spares_negative=settings["against"] == INSTEAD,
            refuses_unguided="A negative prompt acts only through guidance, and there is none at CFG 1.",
        )


GUARD = Negative()
