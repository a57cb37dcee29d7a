"""ConceptPrune: zeroing the few feed-forward weights that fire for a concept and not for its replacement.

Chavhan et al., ConceptPrune (arXiv 2405.19237). The same authors find that memorised pictures share such a
subspace, so memorised prompts are pruned in the same way. While the model draws the concept, the input of the
second linear of every feed-forward is watched: each of its rows is scaled to length one, and the norms A_tj of
the columns are taken over all rows of step t. A weight's score is |W_ij| A_tj, and

    mask_t = { (i, j): the score is in the top rho of its row and above the score for the base prompts }
    mask   = { (i, j): in mask_t for more than sel * tau of the first tau steps },    W <- W (1 - mask)

No gradient and no solve; what a sampling run costs, twice. Where we differ from the official program, whose
repository states no licence and was not opened:
- A_tj is a root mean square, not a root of a sum, so that prompt sets of different sizes can be compared; for
  sets of one size the masks are the same.
- Each run ends after tau steps, since later ones are not looked at.
- Each concept has a mask of its own and their union is pruned; a concept's weight plays no part.
- `spare` is ours.
- What is removed is kept as a sparse edit, so that it can be scaled and undone.
Published for SD 1.5, where tau 10 means 10 of 51 steps. Families tried: the demo world, where it erases little: a
ball is still read off 97 % of its pictures at rho 0.01 and off 75 % at 0.5 (40 pictures, 10 steps, spare 0). Its
concepts lie elsewhere: with all its second linears at zero, 35 % still show the ball, and the rest is ruined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import torch
from torch import Tensor, nn

from ..algebra.closed_form import solved_dtype
from ..algebra.context import TEMPLATES
from ..algebra.parameters import templates
from ..algebra.tokens import LAST, select_pair
from ..concepts import Concept
from ..errors import ConceptError, FamilyError, NumericsError, SettingError
from ..model import Model
from ..provenance import recipe_of
from ..result import Eraser, WeightEdit
from ..spec import MethodSpec, Parameter, Value
from ..target import Track, untracked
from ..task import Task

SECOND_LINEARS = r"(^|\.)ff\.net\.2$"

Norms = Mapping[str, Tensor]
"""Column norms `[tau, i]` by the name of the parameter that the inputs meet."""


class ConceptPrune:
    """Feed-forward weights that a concept needs and its replacement does not, set to zero."""

    spec = MethodSpec(
        name="concept_prune",
        title="ConceptPrune / memorised subspace",
        paper="Chavhan et al., ConceptPrune: Concept Editing in Diffusion Models via Skilled Neuron Pruning "
        "(arXiv 2405.19237)",
        summary="Draws the concept and its replacement, and zeroes the feed-forward weights that fire for the concept.",
        families=(),
        parameters=(
            Parameter(
                "rho",
                0.01,
                "Skill ratio: share of each row's weights that may be pruned, those with the highest scores. Start "
                "at 0.01; 0.02 was often used for objects. Higher erases more and harms more.",
                minimum=0.001,
                maximum=0.5,
                step=0.001,
            ),
            Parameter(
                "tau",
                10,
                "How many of the first sampling steps are looked at; the rest are not run. Start at 10 (published "
                "with 50 steps); it cannot exceed steps.",
                minimum=1,
                maximum=100,
                unit="steps",
            ),
            Parameter(
                "sel",
                0.0,
                "Selectivity: a weight is pruned if it stood out in more than this share of those steps. 0, as "
                "published, prunes what stood out in any of them. Higher prunes less.",
                maximum=0.99,
            ),
            Parameter(
                "steps",
                20,
                "Sampling steps that the noise schedule is divided into, 1 to 100. Start at 20; published with 50.",
                minimum=1,
                maximum=100,
                unit="steps",
            ),
            Parameter(
                "cfg",
                7.5,
                "Guidance scale of the sampling, from 1 to 30. Start at the one you draw with; 7.5 is usual for SD.",
                minimum=1.0,
                maximum=30.0,
                step=0.1,
            ),
            templates("object"),
            Parameter(
                "pictures",
                2,
                "How many pictures of each sentence are drawn, each from noise of its own. Start at 2; more take "
                "longer and depend less on chance.",
                minimum=1,
                maximum=64,
                unit="pictures",
            ),
            Parameter(
                "spare",
                0,
                "Ours: how many preserved prompts, the first of the list, are drawn as well; weights in the top rho "
                "for them are never pruned. 0, as published, looks at none. Try 8: it keeps more and erases less.",
                minimum=0,
                maximum=1000,
                unit="prompts",
            ),
            Parameter(
                "seed",
                0,
                "Seed of the noise that the pictures are drawn from. Any whole number.",
                minimum=0,
                maximum=2**31 - 1,
                advanced=True,
            ),
        ),
    )

    def fit(self, task: Task, settings: Mapping[str, Value]) -> Eraser:
        """Draw every concept and its replacement, and prune what only the concept needs.

        The model's modules carry hooks while this runs, and none afterwards.

        Raises:
            ConceptError: nothing to erase, a concept without tokens, or nothing to spare though `spare` is set.
            SettingError: `tau` exceeds `steps`, or no weight at all would be pruned.
            FamilyError: the task has no model, or the model no such feed-forward.
            NumericsError: an activation is not finite, or the sampler did not run a layer.
        """
        if not task.concepts.erase:
            raise ConceptError("There is no concept to erase.", "Connect a 'Concept to Erase' node.")
        if int(settings["tau"]) > int(settings["steps"]):
            raise SettingError(
                f"tau is {settings['tau']} and steps is {settings['steps']}.", "Lower tau or raise steps."
            )
        spared = task.concepts.kept[: int(settings["spare"])]
        if settings["spare"] and not spared:
            raise ConceptError("There are no preserved prompts to spare.", "Preserve some, or set spare to 0.")
        model = task.loaded()
        runs: list[tuple[Norms, Norms]] = []
        bases: dict[tuple[str, ...], Norms] = {}
        for concept in task.concepts.erase:
            targets, base = _prompts(task, concept, TEMPLATES[str(settings["templates"])])
            if base not in bases:
                bases[base] = watch_norms(model, base, settings, task.track)
            runs.append((watch_norms(model, targets, settings, task.track), bases[base]))
        kept = watch_norms(model, spared, settings, task.track) if spared else None
        adapters = prune_layers(model.parameter, runs, settings, kept)
        return Eraser(recipe_of(self.spec.name, settings, task, int(settings["seed"])), adapters=adapters)


def wanda_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """What each weight contributes at most: `|W_ij| A_j` (the Wanda score).

    Args:
        weight: `[o, i]`.
        norms: `[i]`, norms of the columns of the linear's input.

    Returns:
        `[o, i]`, in float64 if either is, else in float32.
    """
    return weight.abs() * norms


def top_scores(scores: Tensor, rho: float) -> Tensor:
    """Which scores `[o, i]` are among the `round(rho * i)` highest of their row; equal scores share a rank."""
    count = round(rho * scores.shape[1])
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    return scores >= scores.topk(count, dim=1).values[:, -1:]


def prune_mask(weight: Tensor, target: Tensor, base: Tensor, rho: float, tau: int, sel: float) -> Tensor:
    """Which weights fire for the target prompts, by ConceptPrune's rule.

    Args:
        weight: `[o, i]` float.
        target, base: `[steps, i]`, column norms of each step for the target and the base prompts.
        rho: share of each row that can be chosen at a step.
        tau: how many of the first steps count; at most `steps`.
        sel: a weight is chosen if it was at more than `sel * tau` of them.

    Returns:
        `[o, i]` bool, True where the weight is to become zero.

    Raises:
        NumericsError: shapes disagree, fewer than tau steps are given, or values are not finite.
    """
    _check(weight, target, tau)
    _check(weight, base, tau)
    count = torch.zeros(weight.shape, dtype=torch.int16)
    for step in range(tau):
        scores = wanda_scores(weight, target[step])
        count += top_scores(scores, rho) & (scores > wanda_scores(weight, base[step]))
    # Rounded because a product such as 0.57 * 100 falls short of the whole number it stands for.
    return count > int(round(sel * tau, 6))


def spared_mask(weight: Tensor, norms: Tensor, rho: float, tau: int) -> Tensor:
    """Which weights `[o, i]` are in the top rho of their row at any of the first tau steps of `norms` `[steps, i]`."""
    _check(weight, norms, tau)
    spared = torch.zeros(weight.shape, dtype=torch.bool)
    for step in range(tau):
        spared |= top_scores(wanda_scores(weight, norms[step]), rho)
    return spared


def sparse_edit(weight: Tensor, mask: Tensor) -> WeightEdit:
    """The edit that takes the weights `[o, i]` under a mask `[o, i]` to exactly zero at strength 1."""
    indices = mask.flatten().nonzero().flatten()
    return WeightEdit(indices=indices, values=-weight.flatten()[indices])


def prune_layers(
    weight: Callable[[str], Tensor],
    runs: Sequence[tuple[Norms, Norms]],
    settings: Mapping[str, Value],
    spared: Norms | None = None,
) -> dict[str, WeightEdit]:
    """The method on plain tensors, one layer in memory at a time.

    Args:
        weight: a parameter `[o, i]` by its name.
        runs: for each concept the column norms of its prompts and of its base prompts.
        settings: checked settings (`ConceptPrune.spec.settings({...})`).
        spared: column norms of the prompts whose top weights stay; none when None.

    Returns:
        Sparse edits by parameter name; layers in which nothing is pruned are left out.

    Raises:
        NumericsError: shapes disagree or values are not finite.
        SettingError: nothing is pruned in any layer.
    """
    rho, tau, sel = float(settings["rho"]), int(settings["tau"]), float(settings["sel"])
    edits = {}
    for name in runs[0][0]:
        matrix = weight(name)
        mask = torch.zeros(matrix.shape, dtype=torch.bool)
        for target, base in runs:
            mask |= prune_mask(matrix, target[name], base[name], rho, tau, sel)
        if spared is not None:
            mask &= ~spared_mask(matrix, spared[name], rho, tau)
        if bool(mask.any()):
            edits[name] = sparse_edit(matrix, mask)
    if not edits:
        raise SettingError(
            f"No weight fires for the concept alone at rho {rho:g}, sel {sel:g}, spare {settings['spare']}.",
            "Raise rho, lower sel or spare, or name another replacement.",
        )
    return edits


@torch.no_grad()
def watch_norms(model: Model, prompts: Sequence[str], settings: Mapping[str, Value], track: Track = untracked) -> Norms:
    """Draw `prompts` and measure what enters the second linear of every feed-forward.

    The unconditional half of guided sampling counts too, in one call with the other half or in its own.

    Args:
        model: it carries hooks meanwhile, and none afterwards, whatever happens.
        prompts: each is drawn `pictures` times; two sets of one size start from the same noise.
        settings: checked settings; `tau`, `steps`, `cfg`, `pictures` and `seed` are used.
        track: goes through the pictures; what it raises ends the drawing.

    Returns:
        Column norms `[tau, i]` by parameter name, in float64 for float64 activations, else in float32.

    Raises:
        FamilyError: the model has no such linear.
        NumericsError: an activation is not finite, or a layer did not run at each of the first tau steps.
    """
    modules = model.modules(SECOND_LINEARS)
    if not modules:
        raise FamilyError(
            "This model has no feed-forward layers that ConceptPrune knows.",
            "Use it on a UNet (SD 1.x, SD 2.x, SDXL), or choose another method.",
        )
    watcher = _Watcher(modules, int(settings["tau"]))
    drawn = [prompt for prompt in prompts for _ in range(int(settings["pictures"]))]
    with watcher.hooked():
        # One prompt a run: a host may draw several one after the other, and a run ends after its tau steps.
        for seed, prompt in enumerate(track(drawn, len(drawn)), int(settings["seed"])):
            watcher.step = 0
            with suppress(_Enough):
                model.sample([prompt], int(settings["steps"]), float(settings["cfg"]), seed, watcher.next_step)
    return watcher.norms()


class _Enough(Exception):
    """Ends a sampling run of which no more is wanted, in the way a cancelled one ends."""


class _Watcher:
    """Sums of squares of the columns that enter some linears, step by step, over any number of runs."""

    def __init__(self, modules: Mapping[str, nn.Module], tau: int) -> None:
        self.modules, self.tau, self.step = modules, tau, 0
        self._sums: dict[str, dict[int, Tensor]] = {name: {} for name in modules}
        self._rows: dict[str, dict[int, int]] = {name: {} for name in modules}
        self._dtype = torch.float32

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Watch while the block runs; the hooks go whatever happens in it."""
        handles = []
        try:
            for name, module in self.modules.items():
                handles.append(module.register_forward_pre_hook(partial(self._see, name)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def next_step(self, _: int) -> None:
        """Close a step. Steps are counted here, so that hosts may number the first one as they like."""
        self.step += 1
        if self.step == self.tau:
            raise _Enough

    def _see(self, name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._dtype = solved_dtype(inputs[0])
        rows = inputs[0].detach().flatten(0, -2).to(self._dtype)
        squares = nn.functional.normalize(rows, dim=1).square().sum(0).cpu().double()
        sums, counts = self._sums[name], self._rows[name]
        sums[self.step] = sums[self.step] + squares if self.step in sums else squares
        counts[self.step] = counts.get(self.step, 0) + len(rows)

    def norms(self) -> Norms:
        """Root mean squares of the columns by parameter name."""
        found = {}
        for name, sums in self._sums.items():
            if set(sums) != set(range(self.tau)):
                raise NumericsError(
                    f"'{name}' ran in {len(sums)} of the first {self.tau} sampling steps.",
                    "Lower tau, or draw with a sampler that reports every step.",
                )
            rows = self._rows[name]
            norms = torch.stack([(sums[step] / rows[step]).sqrt() for step in range(self.tau)]).to(self._dtype)
            if not bool(torch.isfinite(norms).all()):
                raise NumericsError(
                    f"What enters '{name}' holds values that are not finite.", "Run the model in float32 or bfloat16."
                )
            found[f"{name}.weight"] = norms
        return found


def _prompts(task: Task, concept: Concept, frames: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A concept's target prompts and, one for each, its base prompts; ConceptError for a name without tokens."""
    for name in concept.names:
        select_pair(LAST, *task.encode([name, concept.replacement]))
    targets = tuple(frame.format(name) for name in concept.names for frame in frames)
    base = tuple(frame.format(concept.replacement) if concept.replacement else "" for frame in frames)
    return targets, base * len(concept.names)


def _check(weight: Tensor, norms: Tensor, tau: int) -> None:
    if weight.ndim != 2 or norms.ndim != 2 or norms.shape[1] != weight.shape[1] or not 1 <= tau <= len(norms):
        raise NumericsError(
            f"A weight and its column norms have shapes {tuple(weight.shape)} and {tuple(norms.shape)} at tau {tau}.",
            "They have to be [o, i] and [steps, i], with tau from 1 to steps.",
        )
    if not bool(torch.isfinite(weight).all() and torch.isfinite(norms).all()):
        raise NumericsError(
            "A weight or its column norms hold values that are not finite.", "Run the model in float32 or bfloat16."
        )


METHOD = ConceptPrune()
