"""SPEED (arXiv 2503.07392): erase in the null space of what is retained.

Per layer: the embeddings of retained prompts that an unconstrained edit would move more than average are kept
(influence-based prior filtering), samples of them along a direction that W hardly answers are added (directed
prior augmentation), and the edit is confined to the null space of both and must not move the empty prompt
(invariant equality constraints). The solve is that of algebra/null_space.py, one adapter of rank n a layer.

    C1 = mean c c^T,    A1 = mean g c^T,    influence of r = |W (A1 - C1) (I + C1)^-1 r|

Where we differ from the official program:
- With fewer outputs than inputs it augments along the smallest non-zero singular direction of W; the corrected
  form takes one of the directions that W does not answer at all. One direction either way: noise in all of them
  would take them all out of the null space.
- Over several tokens of a concept it averages over concepts and sums over tokens; the corrected form averages
  over both.
- Its noise is `v (v^T z)`; we draw the normal number `v^T z` itself, the same numbers for every layer, so that
  a layer's edit does not depend on which others are edited. Samples are never written out: a retained row and
  its samples are one weighted row, plus one row along v for their spread.
- Every token from the concept's last word to the end of the padding is erased, not that word's alone: on the demo
  world, where the padding decides, the program's rule leaves a concept in half of its pictures, ours in one of twenty.
- tau counts in mean eigenvalues and rho is divided by the number of concepts, unless set otherwise.
- The filter is off unless set: it frees directions by letting the prompts of little influence go. Demo world, 148
  words kept, "ball" erased, rho set to leave a fifth of it: they move by 5.8 % without the filter, 21 % with it.
- Without the filter, samples are not filtered either. A filter that keeps nothing keeps everything.
- Where nothing but the empty prompt is retained, its positions after the start token are.
`shared` is our proposal, not the paper's: one filter, one direction and one null space for all layers.
Families tried: demo; cost at SD1.5 and SDXL sizes with random weights. Official code: Ouxiang-Li/SPEED,
known from descriptions of it only.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..algebra.closed_form import finite, solved_dtype
from ..algebra.context import ABSOLUTE, RELATIVE, TEMPLATES, concept_pairs
from ..algebra.held import hold
from ..algebra.null_space import NullSpace, Prior, null_space, quiet_direction, solve_in_null_space
from ..algebra.parameters import AS_RELEASED, templates, tokens, variant
from ..algebra.tokens import ALL, LAST, TAIL, select_pair
from ..errors import FamilyError, NumericsError
from ..provenance import recipe_of
from ..result import Eraser, WeightEdit
from ..sites import list_sites
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

VALUES, KEYS_AND_VALUES = "v", "k and v"
CENTRES = 3
_LOG = logging.getLogger("lethe")


class SPEED:
    """Erasure that what is retained does not see, by one low-rank edit a layer."""

    spec = MethodSpec(
        name="speed",
        title="SPEED",
        paper="Li et al., SPEED: Scalable, Precise, and Efficient Concept Erasure for Diffusion Models, ICLR 2026 "
        "(arXiv 2503.07392)",
        summary="Maps the concept to its replacement within the null space of what is retained, layer by layer.",
        families=("demo",),
        parameters=(
            Parameter(
                "sites",
                VALUES,
                "Which projections are edited: the values (v, as published), or keys and values.",
                choices=(VALUES, KEYS_AND_VALUES),
            ),
            tokens(TAIL),
            templates("none"),
            Parameter(
                "tau",
                0.1,
                "Directions in which the retained embeddings vary less than this are free to edit. Start at 0.1; "
                "published from 1e-4 to 0.1. Lower keeps more and erases less.",
                minimum=1e-8,
                maximum=10.0,
                step=0.0001,
            ),
            Parameter(
                "tau_scale",
                RELATIVE,
                "Whether tau is multiplied by the mean eigenvalue, trace/d (relative), or taken as it is (absolute, "
                "as published; much the same for SD 1.x).",
                choices=(RELATIVE, ABSOLUTE),
                advanced=True,
            ),
            Parameter(
                "rho",
                1.0,
                "Weight of changing the weights little. Start at 1; published 1 for few concepts, 0.7 for nudity, "
                "0.05 for many. Higher erases less and keeps more.",
                minimum=1e-3,
                maximum=1000.0,
                step=0.001,
            ),
            Parameter(
                "rho_per_concept",
                True,
                "Divide rho by the number of erased names, so that each is erased as strongly as if it were alone. "
                "Off as published.",
                advanced=True,
            ),
            Parameter(
                "lamb",
                0.0,
                "How softly the empty prompt is held. Start at 0, which holds it exactly; published 0, and 0.5 for "
                "nudity. Higher lets it move further and erases more.",
                minimum=0.0,
                maximum=1000.0,
                advanced=True,
            ),
            Parameter(
                "aug_num",
                10,
                "Samples added around each retained embedding, 0 to 1000; 0 adds none. Start at 10.",
                minimum=0,
                maximum=1000,
                unit="samples",
                advanced=True,
            ),
            Parameter(
                "filter",
                False,
                "Retain only embeddings that the edit would move more than average: more room to erase, less kept. "
                "Start with off, and switch it on for thousands of preserved prompts. Published on, but off for "
                "celebrities.",
            ),
            Parameter(
                "shared",
                False,
                "Shared SPEED, our proposal and not the paper's: one filter and one null space for all layers. "
                "Faster for large models.",
                advanced=True,
            ),
            Parameter(
                "seed",
                0,
                "Seed of the samples and of the clustering of the empty prompt, a whole number from 0.",
                minimum=0,
                maximum=2**31 - 1,
                step=1,
                advanced=True,
            ),
            variant(
                "it augments along the smallest non-zero singular direction even where a layer has fewer outputs "
                "than inputs, and sums over a concept's tokens."
            ),
        ),
    )

    def fit(self, task: Task, settings: Mapping[str, Value]) -> Eraser:
        """Encode the task's prompts and solve for the sites' edits.

        Raises:
            ConceptError: nothing to erase, or a concept without tokens.
            FamilyError: the task has no model, or it has no such sites.
            NumericsError: features are not finite, or what is retained leaves no room to erase.
        """
        rule = str(settings["tokens"])
        sources, targets, importance, units = [], [], [], 0.0
        for pair in concept_pairs(task, TEMPLATES[str(settings["templates"])]):
            source, target = select_pair(rule, pair.source, pair.target)
            if rule == ALL:  # the start token is the same in every prompt
                source, target = source[1:], target[1:]
            sources.append(source)
            targets.append(target)
            importance.append(torch.full((len(source),), pair.weight, dtype=torch.float64))
            units += pair.weight
        held, empty = hold(task, LAST), task.encode([""])[0].states
        rows = Rows(
            torch.cat(sources),
            torch.cat(targets),
            held.last if len(held.prompts) > 1 else empty[1:],
            empty,
            torch.cat(importance),
            units if settings["variant"] == AS_RELEASED else None,
        )
        adapters = edit_weights(_chosen(task, str(settings["sites"])), rows, settings)
        return Eraser(recipe_of(self.spec.name, settings, task, int(settings["seed"])), adapters=adapters)


@dataclass(frozen=True)
class Rows:
    """What SPEED works from.

    Attributes:
        erase, target: `[n, d]`, row i of `target` replaces row i of `erase`; n >= 1.
        retain: `[m, d]`, m >= 0.
        empty: `[t, d]`, the empty prompt by position, its start token first.
        importance: `[n]` weights of the erased rows; ones when None.
        units: what sums over the erased rows are divided by; the sum of `importance` when None.
    """

    erase: Tensor
    target: Tensor
    retain: Tensor
    empty: Tensor
    importance: Tensor | None = None
    units: float | None = None

    def __post_init__(self) -> None:
        parts = {"erase": self.erase, "replace": self.target, "retain": self.retain, "hold (empty prompt)": self.empty}
        shapes = [tuple(part.shape) for part in parts.values()]
        matrices = all(len(shape) == 2 for shape in shapes) and len({shape[1] for shape in shapes}) == 1
        if not matrices or shapes[0] != shapes[1] or not len(self.erase) or not len(self.empty):
            raise NumericsError(
                f"Embeddings to {', '.join(parts)} have shapes {', '.join(map(str, shapes))}.",
                "They have to be [n, d], [n, d], [m, d] and [t, d], with something to erase and to hold.",
            )
        finite(**parts)
        weighty = self.importance is None or self.importance.shape == (len(self.erase),)
        if not weighty or not (float(self.weights.min()) > 0 and 0 < self.total < float("inf")):
            raise NumericsError(
                f"The importance of {len(self.erase)} rows to erase is {self.importance}, in units of {self.units}.",
                "It has to be one positive number for each row, and the units a positive number.",
            )

    @cached_property
    def weights(self) -> Tensor:
        """`[n, 1]` float64 importance of the erased rows."""
        given = torch.ones(len(self.erase)) if self.importance is None else self.importance
        return given.double()[:, None]

    @cached_property
    def total(self) -> float:
        """What sums over the erased rows are divided by."""
        return float(self.weights.sum()) if self.units is None else self.units

    def edit(self) -> tuple[Tensor, Tensor]:
        """`c` and `move`, `[min(n, d), d]` float64, with `C1 = c^T c` and `A1 - C1 = move^T c`."""
        root = (self.weights / self.total).sqrt()
        c, move = self.erase.double() * root, (self.target.double() - self.erase.double()) * root
        if len(c) > c.shape[1]:
            basis, c = torch.linalg.qr(c)
            move = basis.T @ move
        return c, move


def edit_weights(weights: Mapping[str, Tensor], rows: Rows, settings: Mapping[str, Value]) -> dict[str, WeightEdit]:
    """SPEED on plain tensors, without a host or a text encoder; solved in float64.

    Args:
        weights: `[o, d]` by site name.
        rows: embeddings to erase, to retain and to hold.
        settings: checked settings (`SPEED.spec.settings({...})`); `sites`, `tokens`, `templates` play no part.

    Returns:
        One edit a site, of rank n or dense where that is smaller; float64 for float64 rows, else float32.

    Raises:
        NumericsError: shapes disagree, values are not finite, or what is retained leaves no room to erase.
    """
    _check_weights(weights, rows.erase.shape[1])
    problem = _Problem(rows, settings)
    edits: dict[str, WeightEdit] = {}
    free: list[int] = []
    reach = 0.0
    for names in [list(weights)] if settings["shared"] else [[name] for name in weights]:
        ups = {name: weights[name].double() @ problem.move.T for name in names}
        space = problem.null_space([weights[name] for name in names], list(ups.values()))
        down = solve_in_null_space(problem.c, space, problem.rho, problem.fixed, float(settings["lamb"]))
        edits |= {name: _edit(up, down, solved_dtype(rows.erase)) for name, up in ups.items()}
        free.append(space.dimensions)
        # The trace of down c^T: how many of the rows, in all, reach their targets.
        reach = max(reach, float((down * problem.c).sum()))
    if reach < 1e-6:
        raise NumericsError(
            "What is retained leaves no room to erase these concepts.", "Raise tau, or preserve fewer prompts."
        )
    _LOG.info("SPEED: %d to %d of %d dimensions are free to edit.", min(free), max(free), rows.erase.shape[1])
    return edits


class _Problem:
    """What every layer has in common, and a layer's null space."""

    def __init__(self, rows: Rows, settings: Mapping[str, Value]) -> None:
        self.settings = settings
        self.c, self.move = rows.edit()
        self.rho = float(settings["rho"]) / (rows.total if settings["rho_per_concept"] else 1.0)
        generator = torch.Generator().manual_seed(int(settings["seed"]))
        empty = rows.empty.double()
        self.fixed = torch.cat([empty[:1], cluster(empty[1:], CENTRES, generator)])
        self.draw = torch.randn(empty.shape[1], generator=generator, dtype=torch.float64)
        noise = torch.randn(len(rows.retain), int(settings["aug_num"]), generator=generator, dtype=torch.float64)
        self.prior = Prior(self.c, rows.retain.double(), noise, bool(settings["filter"]))

    def null_space(self, weights: list[Tensor], ups: list[Tensor]) -> NullSpace:
        """The null space of what these weights retain; `ups` are `W move^T`."""
        direction = torch.zeros_like(self.draw)
        if self.prior.noise.numel():
            released = self.settings["variant"] == AS_RELEASED
            direction = quiet_direction(weights, None if released else self.draw)
        root = self.prior.root(torch.stack([up.T @ up for up in ups]).sum(0), direction)
        relative = self.settings["tau_scale"] == RELATIVE
        mean = float(root.square().sum()) / root.shape[1] if relative else 1.0
        return null_space(root, float(self.settings["tau"]) * mean)


def cluster(rows: Tensor, count: int, generator: torch.Generator, rounds: int = 100) -> Tensor:
    """Centres of rows `[t, d]` by Lloyd's k-means from rows drawn at random, `[min(count, t), d]`."""
    centres = rows[torch.randperm(len(rows), generator=generator)[:count]]
    for _ in range(rounds if len(rows) > count else 0):
        # Squared lengths are subtracted in the fast form of cdist, which cannot tell near rows apart.
        nearest = torch.cdist(rows, centres, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        own = [rows[nearest == index] for index in range(len(centres))]
        moved = torch.stack([part.mean(0) if len(part) else old for part, old in zip(own, centres, strict=True)])
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _edit(up: Tensor, down: Tensor, dtype: torch.dtype) -> WeightEdit:
    if len(down) * (len(up) + down.shape[1]) < len(up) * down.shape[1]:
        return WeightEdit(down=down.to(dtype), up=up.to(dtype))
    return WeightEdit(dense=(up @ down).to(dtype))


def _check_weights(weights: Mapping[str, Tensor], width: int) -> None:
    if not weights:
        raise NumericsError("There are no weights to edit.", "Give at least one site.")
    for name, weight in weights.items():
        if weight.ndim != 2 or weight.shape[1] != width:
            raise NumericsError(
                f"The weights of '{name}' have shape {tuple(weight.shape)}.", f"They have to be [o, {width}]."
            )
        if not bool(torch.isfinite(weight).all()):
            raise NumericsError(
                f"The weights of '{name}' hold values that are not finite.", "Check the model file and its precision."
            )


def _chosen(task: Task, choice: str) -> dict[str, Tensor]:
    """The weights of the sites to edit, by name; FamilyError where there are none."""
    weights = task.loaded().weights()
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    sites = list_sites(shapes, task.family)
    chosen = {site.name: weights[site.name] for site in sites if choice == KEYS_AND_VALUES or site.role == VALUES}
    if not chosen:
        raise FamilyError(
            f"{task.family.title} has no value projections that read text features.",
            f"Set sites to '{KEYS_AND_VALUES}'.",
        )
    return chosen


METHOD = SPEED()
