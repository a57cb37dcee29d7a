"""Forget-Me-Not, attention re-steering (Zhang et al., CVPR workshops 2024, arXiv 2303.17591).

Noised pictures of the concept pass the model under its prompt once, and the norm of all cross-attention to the
concept's tokens J is brought down, over layers l, heads and pixels:

    L = sqrt( sum_{l, head, pixel, j in J} A_l[head, pixel, j]^2 )

There is no target: a few dozen steps are meant to be enough, and more wear the model out.

The paper writes the square of that norm; its program takes the norm, as here. Differs from the program: the norm is
taken of each picture by itself, so that larger batches do the same, whereas its tokens are mixed up there; tokens of
the concept are those of its name, not ones that are learned first from the pictures; only linear and convolution
layers are trained, and weight decay pulls towards the untouched weights, not towards zero.
Official code read, not copied: SHI-Labs/Forget-Me-Not (MIT).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..learn import settings as shared
from ..learn.attention_norm import AttentionNorm
from ..learn.full import Full
from ..learn.pictures import Pictures
from ..learn.places import ENDS, EVERY
from ..learn.plan import ADAMW, Plan, Schedule
from ..learn.scenes import framed_scenes
from ..learn.where import ALL, CROSS
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

OBJECT, STYLE, BARE = "object", "style", "name alone"
_FRAMES = {OBJECT: "a photo of {}", STYLE: "a photo in the style of {}", BARE: "{}"}


class ForgetMeNot:
    """Trains attention away from the concept's tokens."""

    spec = MethodSpec(
        name="forget_me_not",
        title="Forget-Me-Not",
        paper="Zhang et al., Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models, CVPR workshops 2024 "
        "(arXiv 2303.17591)",
        summary="Teaches the model, on a few pictures of the concept, not to look at the concept's words.",
        families=("demo",),
        parameters=(
            shared.where(ALL, (ALL, CROSS), "all as published."),
            Parameter(
                "wording",
                OBJECT,
                "The prompt of the pictures: 'a photo of ...' (object), 'a photo in the style of ...' (style), or the "
                "concept's name alone.",
                choices=tuple(_FRAMES),
            ),
            Parameter(
                "end_tokens",
                EVERY,
                "End tokens that count as the concept's own, beside those of its name: all, which for Stable "
                "Diffusion 1 is all of the padding (as published), the first, or none.",
                choices=ENDS,
            ),
            shared.pictures(10, "about 10 as published; pictures of yours are used instead where there are any"),
        ),
    )
    schedule = Schedule(steps=35, rate=2e-6, optimizer=ADAMW, decay=0.01, clip=1.0)
    small = Schedule(steps=35, rate=6e-5, batch=4, optimizer=ADAMW, decay=0.01, clip=1.0)

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        scenes = framed_scenes(task, (_FRAMES[str(settings["wording"])],))
        return Plan(
            parameters=Full(str(settings["sites"])),
            sources=(Pictures(scenes, count=int(settings["pictures"]), given=True),),
            terms=(AttentionNorm(str(settings["end_tokens"])),),
        )


RECIPE = ForgetMeNot()
