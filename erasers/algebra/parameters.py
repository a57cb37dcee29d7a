"""Settings that several methods or attacks have in common, under one name and meaning."""

from __future__ import annotations

from ..spec import Parameter
from .context import ABSOLUTE, RELATIVE, TEMPLATES
from .tokens import RULES

CORRECTED, AS_RELEASED = "corrected", "as released"


def variant(difference: str) -> Parameter:
    """Whether to follow the paper or its official program, where the two differ; says how they do."""
    return Parameter(
        "variant",
        CORRECTED,
        f"Follow the paper (corrected) or its official program (as released): {difference}",
        choices=(CORRECTED, AS_RELEASED),
        advanced=True,
    )


def tokens(default: str) -> Parameter:
    """Which token positions carry the concept."""
    return Parameter(
        "tokens",
        default,
        "Which token positions carry the concept: its last word's (last), from there to the end of the padding "
        "(tail), all of them, or the first end token (eot). tail reaches the padding, which often decides what is "
        "drawn.",
        choices=RULES,
    )


def matched_guidance() -> Parameter:
    """The guidance of the predictions that an attack fits to pictures of the untouched model."""
    return Parameter(
        "guidance",
        1.0,
        "Guidance scale of the predictions that are matched, 1 to 20. Start at 1, which fits the noise itself; "
        "against guards that act on guidance take the scale that pictures are drawn with. Above 1 a step costs "
        "four times as much.",
        minimum=1.0,
        maximum=20.0,
        step=0.5,
    )


def templates(default: str) -> Parameter:
    """Sentences a concept is erased in."""
    return Parameter(
        "templates",
        default,
        "Sentences the concept is also erased in: none, those for objects and people (object), for art styles (style), "
        "for attributes such as a colour (attribute), or longer ones with colours, sizes and places, for "
        "objects and people (scenes) or for styles (styled scenes).",
        choices=tuple(TEMPLATES),
    )


def lam(default: float, published: str) -> Parameter:
    """The ridge."""
    return Parameter(
        "lam",
        default,
        f"Ridge: weight of staying close to the present weights. Start at {default:g}; {published}. Higher erases "
        "less and keeps more.",
        minimum=0.0,
        maximum=1000.0,
        step=0.001,
    )


def lam_scale(default: str = RELATIVE) -> Parameter:
    """What the ridge is measured in."""
    return Parameter(
        "lam_scale",
        default,
        "Whether lam is multiplied by the mean squared length of the erased embeddings (relative) or taken as it is "
        "(absolute, as published).",
        choices=(RELATIVE, ABSOLUTE),
        advanced=True,
    )


def erase_scale() -> Parameter:
    """Weight of what is erased."""
    return Parameter(
        "erase_scale",
        1.0,
        "Weight of the erased embeddings against the preserved ones, 0.001 to 1000. Start at 1. Higher erases more "
        "and keeps less.",
        minimum=1e-3,
        maximum=1000.0,
        advanced=True,
    )


def preserve_scale(default: float, published: str) -> Parameter:
    """Weight of what is preserved."""
    return Parameter(
        "preserve_scale",
        default,
        "Weight of each preserved embedding against the erased ones. 0 lets all preserved prompts together weigh as "
        f"much as all erased names; {published}. Higher keeps more and erases less.",
        minimum=0.0,
        maximum=1000.0,
        step=0.001,
    )
