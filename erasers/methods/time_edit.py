"""TIME, Text-to-Image Model Editing (arXiv 2303.08084): what an under-specified prompt is to mean.

Every position of the source prompt is a key c, a position of the destination its target g, and

    W' = (lam W + sum (W g) c^T) (lam I + sum c c^T)^-1

without a preserve set; as it holds `W g`, one operator serves every layer, K and V
(algebra/closed_form.py). As published (`align` insert) the destination is the source with words put
in, "a blue rose" for "a rose", and a token goes to the same token. An eraser's replacement is seldom
that, so the default (`align` swap) is ours: prompts are lined up at their last content tokens.

Differs from the program in that all concepts are solved together instead of one edit at a time; that
a destination without the source's tokens is refused instead of running past the end; that K is always
edited with V (an option there, used in its main experiment); and in holding prompts as the other
methods do, unless `preserve_scale` is 0, as published. Tried on the demo world.
Official code: bahjat-kawar/time-diffusion (no licence stated; facts only, nothing copied).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

from ..algebra.closed_form import RidgeSystem, solve_edit
from ..algebra.context import ABSOLUTE, RELATIVE, Pair, Ridge, concept_pairs, no_pooled, pooled_system
from ..algebra.held import hold
from ..algebra.parameters import lam, lam_scale
from ..algebra.tokens import ALL, select_pair
from ..errors import ConceptError, FamilyError
from ..provenance import recipe_of
from ..result import ContextOperator, Eraser
from ..spec import MethodSpec, Parameter, Value
from ..task import EncodedPrompt, Task

INSERT, SWAP = "insert", "swap"
AUGMENTATIONS = ("A photo of {}", "An image of {}", "A picture of {}")
_ARTICLES = ("A ", "An ", "The ")

Positions = Callable[[EncodedPrompt, EncodedPrompt], list[int]]


class TIME:
    """Closed-form edit that keys every token position."""

    spec = MethodSpec(
        name="time",
        title="TIME",
        paper="Orgad et al., Editing Implicit Assumptions in Text-to-Image Diffusion Models, ICCV 2023 "
        "(arXiv 2303.08084)",
        summary="Maps every token of the concept's prompt to a token of its replacement's; holds nothing else.",
        families=("demo", "sd1", "sd2", "sdxl"),
        parameters=(
            Parameter(
                "align",
                SWAP,
                "Which token stands for which. insert (as published): the replacement is the concept with words put "
                "in ('a blue rose' for 'a rose'), and each token goes to the same token. swap (ours): any "
                "replacement, lined up at its last word.",
                choices=(SWAP, INSERT),
            ),
            Parameter(
                "augmentations",
                True,
                "Edit the concept also in 'A photo of', 'An image of' and 'A picture of', as in the published main "
                "experiment.",
            ),
            lam(0.1, "published: 0.1, absolute"),
            lam_scale(ABSOLUTE),
            Parameter(
                "preserve_scale",
                0.01,
                "Weight of each preserved embedding against each erased one. 0 holds nothing, as published: "
                "neighbours of the concept then drift with it. Start at 0.01; higher keeps more and erases less.",
                maximum=1000.0,
                step=0.001,
            ),
        ),
    )

    def fit(self, task: Task, settings: Mapping[str, Value]) -> Eraser:
        """Encode the task's prompts, line them up and solve for the context operator.

        Raises:
            ConceptError: nothing to erase, a concept without tokens, or (insert) a replacement that does
                not contain it.
            FamilyError: pooled features are to be edited and the family has none, or (insert) the text
                encoder gives no token ids.
            NumericsError: the text encoder's features are not finite, or the system is singular.
        """
        tokens, pooled = _systems(task, float(settings["preserve_scale"]))
        positions = inserted(task) if settings["align"] == INSERT else swapped
        for pair in _pairs(task, bool(settings["augmentations"])):
            tokens.erase(*select_aligned(positions, pair.source, pair.target), pair.weight)
            if pooled is not None and pair.source.pooled is not None and pair.target.pooled is not None:
                pooled.erase(pair.source.pooled[None], pair.target.pooled[None], pair.weight)
        ridge = Ridge(float(settings["lam"]), str(settings["lam_scale"]))
        context = {task.family.stream: tokens.solve(ridge.of(tokens))}
        if pooled is not None:
            context[task.family.pooled_stream] = pooled.solve(ridge.of(pooled))
        return Eraser(recipe_of(self.spec.name, settings, task), context)


def _systems(task: Task, scale: float) -> tuple[RidgeSystem, RidgeSystem | None]:
    """Empty systems for the tokens and, if asked for, the pooled features; nothing is held at scale 0."""
    if scale:
        held = hold(task, ALL)
        return RidgeSystem(task.family.width, held.tokens, scale), pooled_system(task, held, scale)
    if task.pooled and not task.family.pooled_stream:
        raise no_pooled(task.family)
    return RidgeSystem(task.family.width), RidgeSystem(task.family.pooled_width) if task.pooled else None


def _pairs(task: Task, augmented: bool) -> Iterable[Pair]:
    """Every name beside its replacement and, augmented, both again in each frame; all count in full."""
    bare = concept_pairs(task, ("{}",))
    if not augmented:
        return bare
    erase = tuple(
        replace(
            concept,
            text=_inner(concept.text),
            replacement=_inner(concept.replacement),
            synonyms=tuple(map(_inner, concept.synonyms)),
        )
        for concept in task.concepts.erase
    )
    framed = concept_pairs(replace(task, concepts=replace(task.concepts, erase=erase)), AUGMENTATIONS)
    return chain(bare, (replace(pair, weight=pair.weight * len(AUGMENTATIONS)) for pair in framed))


def _inner(text: str) -> str:
    """A phrase as it stands inside a sentence: its leading article in lower case."""
    return text[:1].lower() + text[1:] if text.startswith(_ARTICLES) else text


def select_aligned(positions: Positions, source: EncodedPrompt, target: EncodedPrompt) -> tuple[Tensor, Tensor]:
    """All rows of the source `[n, d]`, and the target's rows that `positions` lines up with them `[n, d]`.

    Raises:
        ConceptError: the source holds no content token, or cannot be lined up.
    """
    keys, states = select_pair(ALL, source, target)
    return keys, states[positions(source, target)]


def swapped(source: EncodedPrompt, target: EncodedPrompt) -> list[int]:
    """The target's position for every source position: last content tokens together, others by place.

    Before it, places past the target's last content token fall on that; a target without content is
    its start token. From it on, the overflow falls on the last position.
    """
    before = [min(place, target.last) for place in range(source.last)]
    return before + _following(source, target, source.last, target.last)


def inserted(task: Task) -> Positions:
    """As published: a function that finds each source token in the target, scanning both left to right.

    Raises:
        FamilyError: the text encoder gives no token ids. The function itself raises ConceptError where
            the target does not hold the source's tokens in order.
    """
    an, a = task.encode(["an", "a"])
    if not an.ids or not a.ids:
        raise FamilyError("This text encoder gives no token ids, which align 'insert' needs.", "Set align to 'swap'.")
    # Where an article is more than one token, no token means "an" by itself.
    same = {an.ids[1]: a.ids[1]} if an.last == a.last == 1 else {}
    return lambda source, target: _inserted(source, target, same)


def _inserted(source: EncodedPrompt, target: EncodedPrompt, same: Mapping[int, int]) -> list[int]:
    wanted, offered = ([same.get(token, token) for token in prompt.ids] for prompt in (source, target))
    places: list[int] = []
    for token in wanted[: source.last + 1]:
        start = places[-1] + 1 if places else 0
        if token not in offered[start : target.last + 1]:
            raise ConceptError(
                f"'{target.text}' does not contain the tokens of '{source.text}' in order.",
                "Write the replacement as the concept with words put in, e.g. 'a blue rose' for 'a rose', "
                "or set align to 'swap'.",
            )
        places.append(offered.index(token, start))
    return places + _following(source, target, source.last + 1, target.last + 1)


def _following(source: EncodedPrompt, target: EncodedPrompt, start: int, other: int) -> list[int]:
    """The target's positions from `other` on for the source's from `start` on, the overflow at the last one."""
    last = len(target.states) - 1
    return [min(other + step, last) for step in range(len(source.states) - start)]


def edit_embeddings(
    erase: Tensor, target: Tensor, preserve: Tensor, settings: Mapping[str, Value], weights: Tensor | None = None
) -> ContextOperator:
    """TIME on plain tensors, without a host or a text encoder.

    Args:
        erase, target: `[n, d]`, row i of `target` replaces row i of `erase`.
        preserve: `[m, d]`; not looked at when `preserve_scale` is 0.
        settings: checked settings (`TIME.spec.settings({...})`).
        weights: `[n]` importance of the erased rows; ones when None.

    Returns:
        The operator, in float64 for float64 rows, else in float32.

    Raises:
        NumericsError: shapes disagree, values are not finite, or the system is singular.
    """
    ridge, scale = float(settings["lam"]), float(settings["preserve_scale"])
    if settings["lam_scale"] == RELATIVE:
        ridge *= float(erase.double().square().sum(-1).mean())
    held = preserve if scale else preserve[:0]
    return solve_edit(erase, target, held, ridge, weights, torch.full((len(held),), scale, dtype=torch.float64))


METHOD = TIME()
