"""Settings that several recipes have in common, under one name and meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..algebra import parameters
from ..spec import Parameter, Value
from .full import Full
from .low_rank import LowRank
from .moment import ANCHOR, CONCEPT, NULL, STUDENT, TEACHER, Scene
from .operator import Operator
from .regress import Regress, negative_guidance
from .rollout import Rollout
from .trainables import Parameterisation
from .where import TEXT_STREAM

FULL, LOW_RANK, OPERATOR = "full", "low rank", "operator"
KEPT, FRESH = "kept", "fresh"
STUDENT_FRESH, FRESH_AVERAGE = "fresh, student", "fresh, average"
REPLACEMENT, EMPTY = "replacement", "empty"


def where(default: str, choices: tuple[str, ...], published: str) -> Parameter:
    """The layers that are trained."""
    return Parameter(
        "sites",
        default,
        "The layers that are trained: cross-attention (cross), its keys and values (cross-kv), everything but "
        "cross-attention (not-cross), self-attention (self), that and cross-attention's queries (self+q), all of the "
        "transformer blocks (blocks), their feed-forward layers (ff), those that only text passes (text stream), "
        "everything (all). Where text and picture share one attention, the text's own projections count as "
        f"cross-attention, the picture's as self-attention. {published}",
        choices=(*choices, TEXT_STREAM),
    )


def form(default: str) -> Parameter:
    """What the chosen layers are changed by."""
    return Parameter(
        "form",
        default,
        "What is trained: the chosen layers' weights freely (full), by matrices of the rank given (low rank), or one "
        "map of the text features for all layers, whatever the sites, of that rank (operator). Low rank and operator "
        f"want ten times the learning rate of full, or more. Published: {default}.",
        choices=(FULL, LOW_RANK, OPERATOR),
    )


def parameters_of(settings: Mapping[str, Value]) -> Parameterisation:
    """What `form` and `sites` describe."""
    where = str(settings["sites"])
    return {FULL: Full(where), LOW_RANK: LowRank(where), OPERATOR: Operator()}[str(settings["form"])]


def eta(default: float, published: str) -> Parameter:
    """Strength of the negative guidance in the target."""
    return Parameter(
        "eta",
        default,
        "How far the target is pushed away from the concept, as a guidance scale, 0 to 20. "
        f"Start at {default:g}; {published}. Higher erases more and bends more.",
        maximum=20.0,
        step=0.1,
    )


def neutral() -> Parameter:
    """What the negative guidance of a sentence leads to.

    The empty prompt, as published for the bare name, is led to from all the sentence says: ESD's training of the demo
    model then erased 0.83 of a style and 1.00 of an object and kept 0.88 of all else; 1.00 and 1.00 by the default.
    """
    return Parameter(
        "neutral",
        REPLACEMENT,
        "What a sentence with the concept is led to instead: itself with the replacement, or without the concept where "
        "it has none (replacement), or the empty prompt (empty), published for the bare name, which leads away from "
        f"all its other words as well. Start with {REPLACEMENT}.",
        choices=(REPLACEMENT, EMPTY),
        optional=True,
    )


def neutral_role(settings: Mapping[str, Value]) -> str:
    """The role that `neutral` gives that part."""
    return ANCHOR if settings["neutral"] == REPLACEMENT else NULL


def guidance_of(settings: Mapping[str, Value], role: str = CONCEPT, weight: float = 1.0) -> Regress:
    """The negative guidance that `eta` and `neutral` describe, for the student's prediction of `role`."""
    return negative_guidance(float(settings["eta"]), role, neutral_role(settings), weight)


def templates(default: str = "scenes", published: str = "the bare name (none)") -> Parameter:
    """Sentences a concept is erased in.

    The default departs from most published programs, which train on the bare name. A small model then learns that
    prompt and not the concept: ESD's training of the demo model erased .3 to .7 of the ball from its name or short
    sentences, .95 from these, in as many steps.
    """
    found = parameters.templates(default)
    return replace(found, tooltip=f"{found.tooltip} Start with {default}; published: {published}.")


def cfg(default: float) -> Parameter:
    """Guidance of the rollouts."""
    return Parameter(
        "cfg",
        default,
        f"Guidance scale of the rollouts that give the latents, 1 to 30; {default:g} as published.",
        minimum=1.0,
        maximum=30.0,
        step=0.1,
        advanced=True,
    )


def sampling_steps(default: int, published: int = 0) -> Parameter:
    """Steps of a whole rollout; as published unless another number is."""
    own = f"; {default} as published" if not published else f". Start at {default}; {published} as published"
    return Parameter(
        "sampling_steps",
        default,
        f"Sampler steps of a whole rollout, 2 to 1000{own}.",
        minimum=2,
        maximum=1000,
        step=1,
        unit="steps",
        advanced=True,
    )


def latents(published: str) -> Parameter:
    """Where latents come from."""
    return Parameter(
        "latents",
        KEPT,
        "Where the latents come from: whole trajectories of the untouched model that are kept and drawn from (kept; "
        "about 15 times fewer predictions), a new rollout of it at each step (fresh), or of the model in training "
        f"(fresh, student). {published}",
        choices=(KEPT, FRESH, STUDENT_FRESH),
        advanced=True,
    )


def averaged_latents() -> Parameter:
    """Where latents come from in a recipe whose result is a moving average."""
    return Parameter(
        "latents",
        KEPT,
        "Where the latents come from: whole trajectories of the untouched model that are kept and drawn from (kept; "
        "about 15 times fewer predictions), a new rollout of it at each step (fresh), of the model in training (fresh, "
        "student), or of its moving average (fresh, average; as published).",
        choices=(KEPT, FRESH, STUDENT_FRESH, FRESH_AVERAGE),
        advanced=True,
    )


def trajectories() -> Parameter:
    """How many trajectories are kept."""
    return Parameter(
        "trajectories",
        16,
        "Trajectories that are kept where latents are kept, 1 to 1024, and one for each concept at least; 16 is "
        "enough for one concept. They lie in ordinary memory.",
        minimum=1,
        maximum=1024,
        step=1,
        unit="trajectories",
        advanced=True,
    )


def rollout_of(
    settings: Mapping[str, Value], scenes: tuple[Scene, ...], zones: Mapping[str, tuple[float, float]] | None = None
) -> Rollout:
    """The rollout that `latents`, `cfg`, `sampling_steps` and `trajectories` describe."""
    who = STUDENT if settings["latents"] == STUDENT_FRESH else TEACHER
    kept = int(settings["trajectories"]) if settings["latents"] == KEPT else 0
    return Rollout(scenes, float(settings["cfg"]), int(settings["sampling_steps"]), who=who, kept=kept, zones=zones)


def pictures(default: int, published: str) -> Parameter:
    """How many pictures are drawn to train on."""
    return Parameter(
        "pictures",
        default,
        "Pictures that the untouched model draws before training, of each kind that the recipe looks at, 1 to 10000. "
        f"Start at {default}; {published}. Each takes a whole rollout.",
        minimum=1,
        maximum=10000,
        step=1,
        unit="pictures",
    )
