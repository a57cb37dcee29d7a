"""UCE, Unified Concept Editing (arXiv 2308.14761), in its erase form.

Equation 7 of the paper with targets `W g`, solved once for all layers (algebra/closed_form.py).
Differs from both released programs: prompts are encoded once, the empty prompt is always preserved,
the ridge is relative to the embeddings' size unless asked otherwise, and the token rule is a
setting (`last` is the program of 2025, `tail` the one before it). Official code read, not copied:
rohitgandikota/unified-concept-editing (MIT).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..algebra.closed_form import solve_edit
from ..algebra.tokens import RULES, select_pair, select_rows
from ..concepts import Concept
from ..errors import ConceptError
from ..provenance import recipe_of
from ..result import ContextOperator, Eraser
from ..spec import MethodSpec, Parameter, Value
from ..task import EncodedPrompt, Task

TEMPLATES = {
    "none": ("{}",),
    "object": ("{}", "image of {}", "photo of {}", "portrait of {}", "picture of {}", "painting of {}"),
    "style": ("{}", "painting by {}", "art by {}", "artwork by {}", "picture by {}", "style of {}"),
    "attribute": ("{}", "{} style", "in {} style", "a {} thing", "a picture of a {} thing"),
}


class UCE:
    """Closed-form edit of every cross-attention projection at once."""

    spec = MethodSpec(
        name="uce",
        title="UCE",
        paper="Gandikota et al., Unified Concept Editing in Diffusion Models, WACV 2024 (arXiv 2308.14761)",
        summary="Maps the concept's embeddings to the replacement's and holds the preserved ones, in one solve.",
        families=("demo", "sd1", "sd2", "sdxl"),
        parameters=(
            Parameter(
                "tokens",
                "tail",
                "Which token positions carry the concept: its last word's (last), from there to the end of the "
                "padding (tail), or all of them. tail reaches the padding, which often decides what is drawn.",
                choices=RULES,
            ),
            Parameter(
                "templates",
                "object",
                "Sentences the concept is also erased in: none, or those for objects and people, for art styles, "
                "or for attributes such as a colour.",
                choices=tuple(TEMPLATES),
            ),
            Parameter(
                "ridge",
                0.001,
                "Weight of staying close to the present weights. Start at 0.001 (relative); the program's is 0.5 "
                "(absolute). Higher erases less and keeps more.",
                minimum=1e-6,
                maximum=1000.0,
                step=0.001,
            ),
            Parameter(
                "ridge_scale",
                "relative",
                "Whether the ridge is multiplied by the mean squared length of the erased embeddings (relative) "
                "or taken as it is (absolute, as published).",
                choices=("relative", "absolute"),
                advanced=True,
            ),
            Parameter(
                "erase_scale",
                1.0,
                "Weight of the erased embeddings against the preserved ones. Start at 1.",
                minimum=1e-3,
                maximum=1000.0,
                advanced=True,
            ),
            Parameter(
                "preserve_scale",
                0.0,
                "Weight of each preserved embedding against the erased ones. 0 takes 1 divided by the number of "
                "preserved prompts; 1 as in the program of 2025.",
                minimum=0.0,
                maximum=1000.0,
            ),
        ),
    )

    def fit(self, task: Task, settings: Mapping[str, Value]) -> Eraser:
        """Encode the task's prompts and solve for the context operator.

        Raises:
            ConceptError: nothing to erase, or a concept without tokens.
            NumericsError: the text encoder's features are not finite, or the system is singular.
        """
        if not task.concepts.erase:
            raise ConceptError("There is no concept to erase.", "Connect a 'Concept to Erase' node.")
        tokens = str(settings["tokens"])
        frames = TEMPLATES[str(settings["templates"])]
        rows = [self._rows(task, concept, tokens, frames) for concept in task.concepts.erase]
        erase, target, weights = (torch.cat(parts) for parts in zip(*rows, strict=True))
        kept = task.encode(["", *task.concepts.kept])
        operator = edit_embeddings(erase, target, _preserved(tokens, kept), settings, weights, prompts=len(kept))
        return Eraser(recipe_of(self.spec.name, settings, task), {task.family.stream: operator})

    def _rows(self, task: Task, concept: Concept, tokens: str, frames: tuple[str, ...]) -> tuple[Tensor, ...]:
        """Rows to erase, their targets and their weights: each name counts once, however many templates."""
        sources = task.encode([frame.format(name) for name in concept.names for frame in frames])
        targets = task.encode([frame.format(concept.replacement) if concept.replacement else "" for frame in frames])
        pairs = [select_pair(tokens, source, targets[i % len(frames)]) for i, source in enumerate(sources)]
        erase, target = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return erase, target, torch.full((len(erase),), concept.weight / len(frames))


def edit_embeddings(
    erase: Tensor,
    target: Tensor,
    preserve: Tensor,
    settings: Mapping[str, Value],
    weights: Tensor | None = None,
    prompts: int = 1,
) -> ContextOperator:
    """UCE on plain tensors, without a host or a text encoder.

    Args:
        erase, target: `[n, d]`, row i of `target` replaces row i of `erase`.
        preserve: `[m, d]`, the empty prompt's rows among them.
        settings: checked settings (`UCE.spec.settings({...})`).
        weights: `[n]` importance of the erased rows; ones when None.
        prompts: how many prompts `preserve` stands for (used when `preserve_scale` is 0).
    """
    ridge = float(settings["ridge"])
    if settings["ridge_scale"] == "relative":
        ridge *= float(erase.double().square().sum(1).mean())
    scale = float(settings["preserve_scale"]) or 1.0 / prompts
    weights = torch.ones(len(erase)) if weights is None else weights
    return solve_edit(
        erase,
        target,
        preserve,
        ridge,
        erase_weights=weights * float(settings["erase_scale"]),
        preserve_weights=torch.full((len(preserve),), scale),
    )


def _preserved(tokens: str, kept: list[EncodedPrompt]) -> Tensor:
    """Preserved rows; the empty prompt, first in `kept`, is always held at every position."""
    if tokens != "last" or len(kept) == 1:
        return select_rows("all", kept)
    return torch.cat([kept[0].states, select_rows("last", kept[1:])])


METHOD = UCE()
