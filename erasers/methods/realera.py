"""RealEra-like: an edit of a concept's neighbourhood, after RealEra (arXiv 2410.09140).

The paper perturbs the erased embedding to reach concepts beside it, and holds embeddings outside that
neighbourhood. No program of theirs was found, so this is a reconstruction from their description, of
the closed-form part alone. To an embedding e belong neighbours at a cosine c in a band,

    e' = |e| (c e / |e| + sqrt(1 - c^2) u),    |u| = 1,  u orthogonal to e

which go to e's replacement together with e; embeddings with a cosine below the band to every erased
one are held. u is drawn from the principal directions of the preserved prompts, as random directions
lie off the manifold of text features. At equal length |e' - e| = |e| sqrt(2 - 2 c), so that the
paper's bound on the distance is the band once more. The neighbours of an embedding together weigh as
much as itself: their number then says how well the neighbourhood is covered, not how hard it is
pushed. The edit is one operator for all layers (algebra/closed_form.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ...kernels.gram import gram_of
from ..algebra.closed_form import Kept, RidgeSystem, finite, solved_dtype
from ..algebra.context import TEMPLATES, Ridge, balance, concept_pairs, pooled_system
from ..algebra.held import hold
from ..algebra.parameters import lam, lam_scale, preserve_scale, templates, tokens
from ..algebra.tokens import ALL, LAST, TAIL, select_pair
from ..errors import NumericsError, SettingError
from ..provenance import recipe_of
from ..result import ContextOperator, Eraser
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

_BLOCK = 2048


class RealEra:
    """Maps a concept and a sample of its neighbourhood to the replacement."""

    spec = MethodSpec(
        name="realera",
        title="RealEra-like",
        paper="Liu et al., RealEra: Semantic-level Concept Erasure via Neighbor-Concept Mining (arXiv 2410.09140)",
        summary="Maps the concept and embeddings close to it to the replacement, and holds those further away.",
        families=("demo",),
        parameters=(
            tokens(TAIL),
            templates("object"),
            Parameter(
                "n_neighbours",
                100,
                "Neighbours drawn for every erased sentence, spread evenly over its tokens; those of a token together "
                "weigh as much as it does. 0 to 10000; start at 100.",
                minimum=0,
                maximum=10000,
                step=1,
                unit="embeddings",
            ),
            Parameter(
                "cosine_low",
                0.95,
                "Least cosine between an embedding and its neighbours. Start at 0.95; lower reaches further and harms "
                "what is related.",
            ),
            Parameter(
                "cosine_high",
                0.99,
                "Greatest cosine between an embedding and its neighbours, from the least one to 1. Start at 0.99; "
                "higher spends neighbours on near copies.",
            ),
            Parameter(
                "directions",
                64,
                "How many principal directions of the preserved prompts the neighbours are drawn from. Start at 64; "
                "more than the features are wide takes all.",
                minimum=2,
                maximum=8192,
                step=1,
                advanced=True,
            ),
            Parameter(
                "preserve_samples",
                100,
                "How many embeddings are drawn outside the neighbourhood, to be held like preserved ones; those that "
                "come to lie inside another one's are dropped. Start at 100; more keep more and erase less.",
                minimum=0,
                maximum=100000,
                step=1,
                unit="embeddings",
            ),
            lam(0.001, "the paper's is not known"),
            lam_scale(),
            preserve_scale(0.0, "the paper's is not known"),
            Parameter(
                "seed",
                0,
                "Seed of everything that is drawn.",
                maximum=2**31 - 1,
                step=1,
                advanced=True,
            ),
        ),
    )

    def fit(self, task: Task, settings: Mapping[str, Value]) -> Eraser:
        """Encode the task's prompts, draw their neighbours and solve for the context operator.

        Raises:
            ConceptError: nothing to erase, or a concept without tokens.
            FamilyError: the task asks for pooled features and the family has none.
            NumericsError: the text encoder's features are not finite, or the system is singular.
            SettingError: the band of cosines is empty.
        """
        rule = str(settings["tokens"])
        rows, goals, weights, pooled = [], [], [], []
        for pair in concept_pairs(task, TEMPLATES[str(settings["templates"])]):
            row, goal = select_pair(rule, pair.source, pair.target)
            rows.append(row)
            goals.append(goal)
            weights.append(torch.full((len(row),), pair.weight))
            if pair.source.pooled is not None and pair.target.pooled is not None:
                pooled.append((pair.source.pooled, pair.target.pooled, torch.tensor(pair.weight)))
        held = hold(task, LAST if rule == LAST else ALL)
        scale = float(settings["preserve_scale"]) or balance(task, held)
        found = _Rows(*map(torch.cat, (rows, goals, weights)), sentences=len(rows))
        context = {task.family.stream: _solve(found, held.tokens.gram, scale, settings)}
        if pooled_system(task, held, scale) is not None and held.pooled is not None:
            found = _Rows(*map(torch.stack, zip(*pooled, strict=True)), sentences=len(rows))
            context[task.family.pooled_stream] = _solve(found, held.pooled.gram, scale, settings)
        return Eraser(recipe_of(self.spec.name, settings, task, int(settings["seed"])), context)


def edit_neighbourhood(
    erase: Tensor,
    target: Tensor,
    preserve: Tensor,
    settings: Mapping[str, Value],
    weights: Tensor | None = None,
    prompts: int = 1,
) -> ContextOperator:
    """RealEra-like on plain tensors (the ridge edit of algebra/closed_form.py, with drawn rows).

    Args:
        erase, target: `[n, d]`, row i of `target` replaces row i of `erase` and its neighbours. Every row counts
            as a sentence of its own.
        preserve: `[m, d]`, rows to hold; their principal directions are those that neighbours are drawn from.
        settings: checked settings (`RealEra.spec.settings({...})`).
        weights: `[n]` importance of the erased rows; ones when None.
        prompts: how many prompts `preserve` stands for (used when `preserve_scale` is 0).

    Returns:
        The operator, in float64 for float64 rows, else in float32.

    Raises:
        NumericsError: shapes disagree, values are not finite, or the system is singular.
        SettingError: the band of cosines is empty.
    """
    if preserve.ndim != 2 or erase.ndim != 2 or preserve.shape[1] != erase.shape[1] or not len(erase):
        raise NumericsError(
            f"Embeddings to erase and to preserve have shapes {tuple(erase.shape)} and {tuple(preserve.shape)}.",
            "They have to be [n, d], with one row or more, and [m, d].",
        )
    finite(preserve=preserve)
    scale = float(settings["preserve_scale"]) or 1.0 / prompts
    shares = torch.ones(len(erase)) if weights is None else weights
    return _solve(_Rows(erase, target, shares, len(erase)), gram_of(preserve), scale, settings)


def principal_directions(gram: Tensor, count: int) -> Tensor:
    """The `count` leading eigenvectors of a Gram matrix `[d, d]` float64 that are not of eigenvalue 0: `[k, d]`."""
    values, vectors = torch.linalg.eigh(gram)
    seen = int((values > values[-1].clamp(min=0) * len(gram) * torch.finfo(gram.dtype).eps).sum())
    return vectors.flip(1)[:, : min(count, seen)].T


def neighbours(rows: Tensor, count: int, low: float, high: float, directions: Tensor, generator: Generator) -> Tensor:
    """Rows of the same length at a cosine from `low` to `high` to given ones.

    Args:
        rows: `[n, d]` float64, none of them zero.
        count: how many to draw for each.
        low, high: the band of cosines, evenly drawn from.
        directions: `[k, d]` float64, orthonormal; neighbours differ from their row along these.
        generator: source of randomness, on the CPU.

    Returns:
        `[n * count, d]` float64, the neighbours of row i from `i * count` on.

    Raises:
        SettingError: the band is empty.
        NumericsError: a row is zero, or has no direction but its own to differ along.
    """
    if low > high:
        raise SettingError(f"The band of cosines from {low:g} to {high:g} is empty.", "Put the lower one first.")
    lengths = rows.norm(dim=1, keepdim=True)
    unit = (rows / lengths).repeat_interleave(count, 0)
    mix = torch.randn(len(unit), len(directions), generator=generator, dtype=torch.float64)
    aside = mix.to(rows.device) @ directions
    aside = aside - (aside * unit).sum(1, keepdim=True) * unit
    size = aside.norm(dim=1, keepdim=True)
    if len(unit) and not bool((size > 1e-9).all()):
        raise NumericsError(
            "An embedding has no direction to vary along.", "Preserve more prompts, or raise 'directions'."
        )
    cosine = torch.rand(len(unit), 1, generator=generator, dtype=torch.float64).to(rows.device) * (high - low) + low
    found = cosine * unit + (1.0 - cosine.square()).sqrt() * aside / size
    return found * lengths.repeat_interleave(count, 0)


def outsiders(rows: Tensor, count: int, low: float, directions: Tensor, generator: Generator) -> Tensor:
    """Up to `count` rows at a cosine below `low` to every given one.

    Args:
        rows: `[n, d]` float64, none of them zero.
        low: the lower end of the neighbourhood's band.
        directions, generator: as for `neighbours`.

    Returns:
        `[m, d]` float64; m < `count` where some came to lie in the neighbourhood of another row.
    """
    around = rows[torch.randint(len(rows), (count,), generator=generator).to(rows.device)]
    found = neighbours(around, 1, 0.0, low, directions, generator)
    units = rows / rows.norm(dim=1, keepdim=True)
    closest = (found / found.norm(dim=1, keepdim=True) @ units.T).amax(1)
    return found[closest < low]


@dataclass(frozen=True)
class _Rows:
    """Rows to erase `[n, d]`, their targets `[n, d]` and weights `[n]`, from so many sentences."""

    erase: Tensor
    target: Tensor
    weights: Tensor
    sentences: int


def _solve(given: _Rows, gram: Tensor, scale: float, settings: Mapping[str, Value]) -> ContextOperator:
    """Draw rows around those to erase and solve, with preserved rows as their Gram matrix `[d, d]`."""
    finite(erase=given.erase)
    rows = given.erase.double()
    generator = torch.Generator().manual_seed(int(settings["seed"]))
    directions = principal_directions(gram, int(settings["directions"]))
    low, high = float(settings["cosine_low"]), float(settings["cosine_high"])
    outside = outsiders(rows, int(settings["preserve_samples"]), low, directions, generator)
    system = RidgeSystem(rows.shape[1], Kept(gram + gram_of(outside)), scale)
    system.erase(given.erase, given.target, given.weights)
    count = math.ceil(int(settings["n_neighbours"]) * given.sentences / len(rows))
    if count:
        # In blocks, as all neighbours at once may not fit into memory.
        blocks = (part.split(max(1, _BLOCK // count)) for part in (rows, given.target, given.weights.double() / count))
        for block, goals, shares in zip(*blocks, strict=True):
            near = neighbours(block, count, low, high, directions, generator)
            system.erase(near, goals.repeat_interleave(count, 0), shares.repeat_interleave(count))
    ridge = Ridge(float(settings["lam"]), str(settings["lam_scale"])).of(system)
    return system.solve(ridge, solved_dtype(given.erase))


METHOD = RealEra()
