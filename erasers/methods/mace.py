"""MACE, closed-form refinement (arXiv 2403.06135): clear what a concept leaked into its neighbours.

A causal text encoder writes a concept into the tokens that stand around it. For every sentence the
positions it shares with the same sentence about the replacement are keys c, and the replacement's
states there are their anchors g; the concept's own tokens are deliberately no keys:

    W' = (lam W + sum W g c^T + s W Gp) (lam I + sum c c^T + s Gp)^-1

with Gp the Gram matrix of the preserved prompts at all positions. It holds `W g`, so one operator
serves every layer (algebra/closed_form.py). This is the first of the paper's three stages; its
concepts' adapters are trained, and algebra/fusion.py merges them. Alone it erases weakly, by design.

Differs from the paper and its program in that preserved prompts are the user's, not all captions of
COCO with a second set under a weight of its own (no domain weight is needed); that the corrected form
takes the preserve scale once where the program squares it; and in sentences of our own. Tried on the
demo world. Official code: Shilin-LU/MACE (non-commercial; facts only, nothing copied).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..algebra.closed_form import solve_edit
from ..algebra.context import RELATIVE, Ridge, concept_pairs, fit_context
from ..algebra.parameters import AS_RELEASED, lam, lam_scale, variant
from ..algebra.tokens import ALL, select_pair
from ..provenance import recipe_of
from ..result import ContextOperator, Eraser
from ..spec import MethodSpec, Parameter, Value
from ..task import EncodedPrompt, Task

SENTENCES = {
    "object": (
        "{}",
        "{} on a bare table",
        "{} seen from above",
        "{} in the early morning",
        "{} in heavy rain",
        "{} beside an open window",
        "{} under a street lamp",
        "{} on a mountain path",
        "{} in a quiet room",
        "{} close to the sea",
        "{} behind a wooden fence",
        "{} and a pair of old shoes",
        "a snapshot of {}",
        "a sharp close view of {}",
        "a blurred frame with {}",
        "a postcard that shows {}",
        "a magazine cover with {}",
        "a pencil study of {}",
        "a still from an old film about {}",
        "a wide view of {} and what lies around",
        "a crowd that looks at {}",
        "a child who points at {}",
        "somebody walks past {} without a glance",
        "the shadow of {} on a wall",
        "two views of {} side by side",
        "a room full of people with {} in the middle",
        "a poster that announces {}",
        "a glass case with {} in a museum",
        "a night scene with {} in the foreground",
        "from far away one can make out {}",
    ),
    "style": (
        "{}",
        "a harbour by {}",
        "a bowl of fruit by {}",
        "a sleeping dog by {}",
        "a winter street by {}",
        "an empty theatre by {}",
        "a face in half light, by {}",
        "a storm over fields, by {}",
        "three dancers, the way {} would show them",
        "a large canvas by {} in a bright hall",
        "an early work of {}",
        "a late work of {} on a grey wall",
        "a quick sketch by {}",
        "a detail from a work of {}",
        "a forged {} at an auction",
        "a stamp with a picture by {}",
        "a mural after {}",
        "a book cover in the manner of {}",
        "a mountain lake in the manner of {}",
        "a market square in the manner of {}",
        "a self portrait in the manner of {}",
        "the colours of {} in a modern poster",
        "the brush of {} in a drawing of a bridge",
        "a copy of {} made by a student",
        "visitors in front of a picture by {}",
        "a garden wall as {} saw it",
        "a kitchen at night as {} saw it",
        "{} and nobody else could have made this",
        "{} on the wall of a small museum",
        "{} printed on a shopping bag",
    ),
}
# Rows of one prefix from two batches of a half-precision encoder differ by less, other words by far more.
_SAME = 1e-2


class MACE:
    """Closed-form refinement of the tokens around a concept."""

    spec = MethodSpec(
        name="mace",
        title="MACE refinement",
        paper="Lu et al., MACE: Mass Concept Erasure in Diffusion Models, CVPR 2024 (arXiv 2403.06135)",
        summary="Clears the concept out of the tokens around it, in one solve; the concept's own tokens are no keys.",
        families=("demo", "sd1", "sd2", "sdxl"),
        parameters=(
            Parameter(
                "templates",
                "object",
                "Sentences the concept is erased in: 30 for objects and people, or 30 for art styles and artists.",
                choices=tuple(SENTENCES),
            ),
            lam(0.1, "published: 10 or 1000, absolute, with nothing preserved, else 0"),
            lam_scale(),
            Parameter(
                "preserve_scale",
                0.0,
                "Weight of each preserved embedding against one embedding of one sentence. 0 gives all preserved "
                "prompts together the weight of one concept (sentences divided by prompts). Start at 0; published: "
                "1e-4 over 600,000 captions. Higher keeps more and erases less.",
                maximum=1000.0,
                step=0.0001,
            ),
            Parameter(
                "all_words",
                False,
                "Take every position for a key, the concept's own tokens too, not lined up. Off as published.",
                advanced=True,
            ),
            variant("the program applies a preserve_scale above 0 twice, so that its square acts."),
        ),
    )

    def fit(self, task: Task, settings: Mapping[str, Value]) -> Eraser:
        """Encode the task's sentences and solve for the context operator.

        Raises:
            ConceptError: nothing to erase, or a concept without tokens.
            FamilyError: pooled features are to be edited and the family has none.
            NumericsError: the text encoder's features are not finite, or the system is singular.
        """
        sentences = SENTENCES[str(settings["templates"])]
        context = fit_context(
            task,
            concept_pairs(task, sentences),
            ALL if settings["all_words"] else select_neighbours,
            Ridge(float(settings["lam"]), str(settings["lam_scale"])),
            preserve_weight(settings, len(sentences), len(task.held)),
            erase_scale=len(sentences),  # pairs weigh 1 / sentences each; every key counts in full here
        )
        return Eraser(recipe_of(self.spec.name, settings, task), context)


def select_neighbours(source: EncodedPrompt, target: EncodedPrompt) -> tuple[Tensor, Tensor]:
    """The positions two prompts share: keys of the source and their anchors in the target.

    Shared are the tokens before the first that differs, those after the last that differs, and the
    end tokens and padding, as many as both have. Where the encoder gives no token ids, tokens before
    are told by their states, which a causal encoder makes equal, and none after are taken but the end
    tokens and padding, whose place is known.

    Returns:
        Two `[n, d]` tensors in the states' dtype.

    Raises:
        ConceptError: the source holds no content token.
    """
    keys, anchors = select_pair(ALL, source, target)
    before = _shared_before(source, target)
    after = _shared_after(source, target, before)
    start, other = source.last + 1 - after, target.last + 1 - after
    length = min(len(keys) - start, len(anchors) - other)
    return (
        torch.cat([keys[:before], keys[start : start + length]]),
        torch.cat([anchors[:before], anchors[other : other + length]]),
    )


def _shared_before(source: EncodedPrompt, target: EncodedPrompt) -> int:
    limit = min(source.last, target.last) + 1
    if source.ids and target.ids:
        same = [one == other for one, other in zip(source.ids[:limit], target.ids[:limit], strict=True)]
    else:
        one, other = source.states[:limit], target.states[:limit]
        same = ((one - other).norm(dim=1) <= _SAME * one.norm(dim=1)).tolist()
    return (*same, False).index(False)


def _shared_after(source: EncodedPrompt, target: EncodedPrompt, before: int) -> int:
    ends = zip(source.ids[before : source.last + 1][::-1], target.ids[before : target.last + 1][::-1], strict=False)
    same = [one == other for one, other in ends]
    return (*same, False).index(False)


def preserve_weight(settings: Mapping[str, Value], sentences: int, prompts: int) -> float:
    """The weight s of every preserved row: the setting, its square as released, or sentences / prompts for 0."""
    scale = float(settings["preserve_scale"])
    if not scale:
        return sentences / prompts
    return scale**2 if settings["variant"] == AS_RELEASED else scale


def refine(
    erase: Tensor,
    target: Tensor,
    preserve: Tensor,
    settings: Mapping[str, Value],
    weights: Tensor | None = None,
    sentences: int = 1,
    prompts: int = 1,
) -> ContextOperator:
    """MACE's refinement on plain tensors, without a host or a text encoder.

    Args:
        erase, target: keys and anchors `[n, d]`, row i of `target` for row i of `erase`.
        preserve: `[m, d]`, all positions of the preserved prompts.
        settings: checked settings (`MACE.spec.settings({...})`).
        weights: `[n]` importance of the keys; ones when None.
        sentences, prompts: how many `erase` and `preserve` stand for (used when `preserve_scale` is 0).

    Returns:
        The operator, in float64 for float64 rows, else in float32.

    Raises:
        NumericsError: shapes disagree, values are not finite, or the system is singular.
    """
    ridge = float(settings["lam"])
    if settings["lam_scale"] == RELATIVE:
        ridge *= float(erase.double().square().sum(-1).mean())
    scale = preserve_weight(settings, sentences, prompts)
    kept = torch.full((len(preserve),), scale, dtype=torch.float64)
    return solve_edit(erase, target, preserve, ridge, weights, kept)


METHOD = MACE()
