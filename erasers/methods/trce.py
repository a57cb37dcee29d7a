"""TRCE, stage 1 (arXiv 2503.07389): a concept's meaning as it gathers in the end token goes elsewhere.

Of N pairs of one sentence with the concept and with its replacement, take keys e_k at the start
token, the first end token, the last end token and the concept's own tokens, and set each on what the
replacement's sentence has there (the concept's own tokens on its last position):

    A = 1/N sum w_k b_k e_k e_k^T + s / m P^T P + lam I,    M = 1/N sum w_k b_k (g_k - e_k) e_k^T A^-1

with P the tokens of m preserved prompts and b = (1, 1, positions after the first end token, 1). Only
the first end token has a weight w by default. The edit is one operator for all layers
(algebra/closed_form.py). lam is 0 as published; a ridge of 1e-8 tr(A) / d then keeps A invertible.

Differs from the official program, except `as released`: end tokens are where the tokenizer puts them,
not at the number of words + 1, which is a content token as soon as a word is split; s is not squared;
every token of the concept counts, not its first word alone. The preserved prompts are the task's
instead of 30,000 captions. Stage 2 (training) is not here.
Official code read, not copied: ddgoodgood/TRCE (no licence stated).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import cycle

import torch
from torch import Tensor

from ..algebra.closed_form import RidgeSystem, solve_edit
from ..algebra.context import RELATIVE, TEMPLATES, Pair, Ridge, concept_pairs, fit_context
from ..algebra.parameters import AS_RELEASED, lam, lam_scale, templates, variant
from ..algebra.tokens import EOT, select_pair
from ..errors import SettingError
from ..provenance import recipe_of
from ..result import ContextOperator, Eraser
from ..spec import MethodSpec, Parameter, Value
from ..task import EncodedPrompt, Task

WEIGHTS = ("w_sot", "w_first_eot", "w_last_eot", "w_keyword")
_GUARD = 1e-8


def _weight(name: str, default: float, meaning: str) -> Parameter:
    return Parameter(
        name,
        default,
        f"Weight of {meaning}, 0 to 100; 0 leaves it out. Start at {default:g}, as published.",
        maximum=100.0,
        advanced=name == WEIGHTS[0],
    )


class TRCE:
    """Maps the end tokens of the concept's sentences to those of the replacement's."""

    spec = MethodSpec(
        name="trce",
        title="TRCE (stage 1)",
        paper="Chen et al., TRCE: Towards Reliable Malicious Concept Erasure, ICCV 2025 (arXiv 2503.07389)",
        summary="Maps the end token of sentences with the concept to that of the same sentences with its replacement.",
        families=("demo",),
        parameters=(
            templates("object"),
            _weight("w_sot", 0.0, "the start token, which a causal encoder leaves the same in every sentence"),
            _weight("w_first_eot", 1.0, "the first end token, which sums the sentence up"),
            _weight("w_last_eot", 0.0, "the last position, times the number of positions after the first end token"),
            _weight("w_keyword", 0.0, "the concept's own tokens, which go to the replacement's last position"),
            lam(0.0, "the paper's is 0, for which a ridge of 1e-8 of the mean squared feature stands in"),
            lam_scale(),
            Parameter(
                "preserve_scale",
                0.01,
                "Weight s of the preserved prompts, all of them together, against the erased sentences together. "
                "Published: 0.01 to 0.02. Higher keeps more and erases less.",
                minimum=1e-6,
                maximum=1000.0,
                step=0.001,
            ),
            variant(
                "it looks for the end token at the number of words + 1, squares preserve_scale and takes the "
                "concept's first word only."
            ),
        ),
    )

    def fit(self, task: Task, settings: Mapping[str, Value]) -> Eraser:
        """Encode the task's sentences, pick their keys and solve for the context operator.

        Raises:
            ConceptError: nothing to erase, or a concept without tokens.
            NumericsError: the text encoder's features are not finite, or the system is singular.
            SettingError: every token weight is 0.
        """
        names = sum(len(concept.names) for concept in task.concepts.erase)
        frames = TEMPLATES[str(settings["templates"])]
        context = fit_context(
            task,
            _keyed(task, frames, settings),
            lambda source, target: (source.states, target.states),
            GuardedRidge(float(settings["lam"]), str(settings["lam_scale"]), share=1.0 / max(names * len(frames), 1)),
            _preserve_weight(settings, len(task.held)),
            1.0 / max(names, 1),
        )
        return Eraser(recipe_of(self.spec.name, settings, task), context)


@dataclass(frozen=True)
class GuardedRidge(Ridge):
    """A ridge relative to the erased part of A, and 1e-8 tr(A) / d where `lam` is 0.

    Attributes:
        share: weight of an erased row in A; concepts' own weights are left out, as only the order of size matters.
    """

    share: float = 1.0

    def of(self, system: RidgeSystem) -> float:
        """Its absolute value for a system."""
        erased = self.share * system.count * system.mean_square
        kept = 0.0 if system.kept is None else system.scale * float(system.kept.gram.trace())
        return _ridge(self.lam, self.scale, erased, kept, system.width)


def select_keys(
    source: EncodedPrompt, target: EncodedPrompt, keyword: range, settings: Mapping[str, Value]
) -> tuple[Tensor, Tensor, Tensor]:
    """The keys of one pair of sentences.

    Args:
        source, target: the sentence with the concept, and with its replacement.
        keyword: positions of the concept in `source`.
        settings: checked settings (`TRCE.spec.settings({...})`).

    Returns:
        Keys e `[k, d]`, what they become g `[k, d]`, and their weights w b `[k]`, all above 0.

    Raises:
        ConceptError: the source holds no content token.
        SettingError: every token weight is 0.
    """
    first, goal = select_pair(EOT, source, target)
    end = source.last + 1
    if settings["variant"] == AS_RELEASED:
        end = _counted_end(source)
        first, goal = source.states[end : end + 1], target.states[_counted_end(target) :][:1]
        keyword = keyword[:1]
    own = source.states[keyword.start : keyword.stop]
    after = len(source.states) - 1 - end
    parts = (
        (source.states[:1], target.states[:1], 1),
        (first, goal, 1),
        (source.states[-1:], target.states[-1:], after),
        (own, target.states[-1:].expand_as(own), 1),
    )
    taken = [
        (key, value, torch.full((len(key),), float(settings[name]) * base))
        for name, (key, value, base) in zip(WEIGHTS, parts, strict=True)
        if float(settings[name]) * base > 0
    ]
    if not taken:
        raise SettingError("Every token weight is 0.", f"Raise one of: {', '.join(WEIGHTS)}.")
    keys, goals, weights = (torch.cat(column) for column in zip(*taken, strict=True))
    return keys, goals, weights


def edit_keys(
    keys: Tensor,
    goals: Tensor,
    preserve: Tensor,
    settings: Mapping[str, Value],
    weights: Tensor | None = None,
    prompts: int = 1,
) -> ContextOperator:
    """TRCE stage 1 on plain tensors (the equation at the head of this file).

    Args:
        keys, goals: `[n, d]`, row i of `goals` is what row i of `keys` becomes.
        preserve: P, `[m, d]`, token rows of the preserved prompts.
        settings: checked settings (`TRCE.spec.settings({...})`).
        weights: `[n]`, w b / N of each key; 1 / n when None.
        prompts: how many prompts `preserve` stands for.

    Returns:
        The operator, in float64 for float64 rows, else in float32.

    Raises:
        NumericsError: shapes disagree, values are not finite, or the system is singular.
    """
    count = len(keys)
    shares = torch.ones(count, dtype=torch.float64) / max(count, 1) if weights is None else weights.double()
    scale = _preserve_weight(settings, prompts)
    erased = float((shares[:, None] * keys.double().square()).sum())
    kept = scale * float(preserve.double().square().sum())
    ridge = _ridge(float(settings["lam"]), str(settings["lam_scale"]), erased, kept, keys.shape[-1])
    held = torch.full((len(preserve),), scale, dtype=torch.float64)
    return solve_edit(keys, goals, preserve, ridge, shares, held)


def _keyed(task: Task, frames: tuple[str, ...], settings: Mapping[str, Value]) -> Iterator[Pair]:
    """Pairs whose prompts are cut down to their keys, times the root of the keys' weights: as good as weights."""
    for pair, frame in zip(concept_pairs(task, frames), cycle(frames)):
        keys, goals, weights = select_keys(
            pair.source, pair.target, _keyword(task, pair.source, frame, settings), settings
        )
        root = weights.sqrt()[:, None]
        yield Pair(replace(pair.source, states=keys * root), replace(pair.target, states=goals * root), pair.weight)


def _keyword(task: Task, prompt: EncodedPrompt, frame: str, settings: Mapping[str, Value]) -> range:
    """Positions of the concept in a prompt made with `frame`."""
    if not settings["w_keyword"]:
        return range(0)
    before, after = frame.split("{}")
    if settings["variant"] == AS_RELEASED:
        return range(len(before.split()) + 1, len(prompt.text.removesuffix(after).split()) + 1)
    head, upto = task.encode([before.strip(), prompt.text.removesuffix(after)])
    return range(head.last + 1, upto.last + 1)


def _counted_end(prompt: EncodedPrompt) -> int:
    """Where the official program looks for the end token."""
    return min(len(prompt.text.split()) + 1, len(prompt.states) - 1)


def _preserve_weight(settings: Mapping[str, Value], prompts: int) -> float:
    scale = float(settings["preserve_scale"])
    return (scale**2 if settings["variant"] == AS_RELEASED else scale) / prompts


def _ridge(lam: float, scale: str, erased: float, kept: float, width: int) -> float:
    """The ridge for a system whose erased and kept parts have these traces."""
    if lam == 0:
        return _GUARD * (erased + kept) / width
    return lam * (erased if scale == RELATIVE else 1.0)


METHOD = TRCE()
