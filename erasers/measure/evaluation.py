"""What an erasure took, what it kept and what still leaks, judged on pictures of both models under equal seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..concepts import ConceptList
from ..errors import SettingError
from ..painter import Painter, Shot, prompted
from ..probe import CONCEPT, SUBJECT, Probe, View
from ..prompts import DIRECT, ERASING, KEEPING, KINDS, PromptRow
from ..sight import Sight
from ..spec import Value
from ..store.album import Album
from ..target import Track, untracked
from .distances import frechet, kernel
from .embedded import EMBEDDED_AT_ONCE, RememberedSight, directions_of_pictures
from .intervals import Interval, mean, paired_rates, rate, statistic

BEFORE, AFTER, FLOOR = "before", "after", "floor"
ERASED_SIDE, KEPT_SIDE = "erased prompts", "kept prompts"


@dataclass(frozen=True)
class Arm:
    """One of the two models: what draws with it, and where its pictures are kept (nowhere for None)."""

    painter: Painter
    album: Album | None = None

    def pictures(self, shots: Sequence[Shot]) -> Tensor:
        """Pictures of shots `[n, 3, h, w]`; only those that the album lacks are drawn."""
        if self.album is None:
            return self.painter.paint(shots)
        missing = [shots[place] for place in self.album.missing(shots)]
        if missing:
            self.album.add(missing, self.painter.paint(missing))
        return self.album.read(shots)


@dataclass(frozen=True)
class Plan:
    """What is asked, and who judges.

    Attributes:
        concepts: what was erased.
        rows: the prompts, each with the seed of its picture.
        judge: the recogniser and its checked settings.
        others: further probes, with settings; those that lack something are named in the result.
        sight: an image encoder, for probes that need one and for distances.
        batch: pictures drawn at a time; what a crash may lose.
        track: goes through items with progress, and stops when the user cancels.
    """

    concepts: ConceptList
    rows: tuple[PromptRow, ...]
    judge: tuple[Probe, Mapping[str, Value]]
    others: tuple[tuple[Probe, Mapping[str, Value]], ...] = ()
    sight: Sight | None = None
    batch: int = 16
    track: Track = untracked

    def __post_init__(self) -> None:
        if not self.rows:
            raise SettingError("There is no prompt to evaluate.", "Write some, or choose a set.")
        if not self.judge[0].recognises:
            raise SettingError(f"Probe '{self.judge[0].spec.name}' recognises nothing.", "Choose another to judge.")


@dataclass(frozen=True)
class KindFigures:
    """One kind of prompts.

    Attributes:
        kind: one of `prompts.KINDS`.
        asked: "concept" or "subject", what the rates count.
        before, after: how often it is seen, untouched and edited.
        p_value: exact McNemar, that the two differ; nan where nothing was compared.
        beside: of compositional prompts, how often what stands beside the concept is seen, before and after.
    """

    kind: str
    asked: str
    before: Interval
    after: Interval
    p_value: float
    beside: tuple[Interval, Interval] | None = None


@dataclass(frozen=True)
class Evaluation:
    """Everything measured.

    Attributes:
        kinds: rates by kind of prompt.
        floor: how often the concept is read off its replacement's pictures, untouched model.
        erased: share of what could go that went, on direct prompts: (before - after) / (before - floor).
        kept: right pictures after as a share of those before, near and far together.
        leaked: the share that synonym, implicit and compositional prompts bring back, as `erased` counts it.
        columns: means of the other probes by column and side (`ERASED_SIDE`, `KEPT_SIDE`), before and after.
        distances: of the kept prompts' pictures after from those before, over the image encoder's embeddings.
        lacking: why a probe is not in `columns`, by its name.
    """

    kinds: tuple[KindFigures, ...]
    floor: Interval
    erased: Interval
    kept: Interval
    leaked: Interval
    columns: Mapping[str, Mapping[str, tuple[Interval, Interval]]] = field(default_factory=dict)
    distances: Mapping[str, Interval] = field(default_factory=dict)
    lacking: Mapping[str, str] = field(default_factory=dict)

    def kind(self, name: str) -> KindFigures | None:
        """The figures of one kind; None where it was not asked."""
        return next((figures for figures in self.kinds if figures.kind == name), None)


def evaluate(before: Arm, after: Arm, plan: Plan) -> Evaluation:
    """Draw every row with both models, and the replacement's prompts with the untouched one; then count.

    Raises:
        SettingError: the judge lacks something, or does not fit the pictures.
    """
    seen = _Seen(plan)
    batches = [plan.rows[i : i + plan.batch] for i in range(0, len(plan.rows), plan.batch)]
    for rows in plan.track(batches, len(batches)):
        shots = [Shot(prompted(row.text), row.seed, row.cfg) for row in rows]
        first = before.pictures(shots)
        seen.look(rows, first, first, BEFORE)
        seen.look(rows, after.pictures(shots), first, AFTER)
        floors = [row for row in rows if row.kind == DIRECT and row.floor is not None]
        if floors:
            shown = before.pictures([Shot(prompted(row.floor or ""), row.seed, row.cfg) for row in floors])
            seen.look(floors, shown, shown, FLOOR)
    return seen.figures()


class _Seen:
    """What the probes have said so far, row by row."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        # The pictures of one batch, both arms and the floor's, in as many parts as they are embedded in.
        self.sight = (
            None if plan.sight is None else RememberedSight(plan.sight, 3 * (plan.batch // EMBEDDED_AT_ONCE + 1))
        )
        self.subjects = {
            kind: tuple(dict.fromkeys(row.subject for row in plan.rows if row.kind == kind and row.subject))
            for kind in KINDS
        }
        self.values: dict[tuple[str, str], list[Tensor]] = {}
        self.embedded: dict[str, list[Tensor]] = {BEFORE: [], AFTER: []}
        self.lacking: dict[str, str] = {}

    def look(self, rows: Sequence[PromptRow], pictures: Tensor, before: Tensor, arm: str) -> None:
        view = View(tuple(rows), pictures, before, self.plan.concepts, self.subjects, self.sight)
        probe, settings = self.plan.judge
        missing = probe.lacks(view)
        if missing:
            raise SettingError(f"Probe '{probe.spec.name}' cannot judge.", missing)
        self._keep(probe.look(view, settings), arm)
        if arm == FLOOR:
            return
        for other, own in self.plan.others:
            reason = other.lacks(view)
            if reason:
                self.lacking[other.spec.name] = reason
            else:
                self._keep(other.look(view, own), arm)
        if self.sight is not None:
            self.embedded[arm].append(directions_of_pictures(self.sight, pictures))

    def _keep(self, columns: Mapping[str, Tensor], arm: str) -> None:
        for name, column in columns.items():
            self.values.setdefault((name, arm), []).append(column)

    def column(self, name: str, arm: str) -> Tensor:
        return torch.cat(self.values.get((name, arm), [torch.zeros(0)]))

    def where(self, kinds: Iterable[str], subject: bool = False) -> Tensor:
        """Places of the rows of some kinds; of those with a subject only, where asked."""
        chosen = set(kinds)
        return torch.tensor([row.kind in chosen and (not subject or bool(row.subject)) for row in self.plan.rows])

    def figures(self) -> Evaluation:
        direct, kept = self.where([DIRECT]), self.where(KEEPING, subject=True)
        others = self.where(kind for kind in ERASING if kind != DIRECT)
        seen, right = ([self.column(name, arm).float() for arm in (BEFORE, AFTER)] for name in (CONCEPT, SUBJECT))
        floor = self.column(CONCEPT, FLOOR)
        ground = float(floor.float().mean()) if len(floor) else 0.0
        return Evaluation(
            kinds=tuple(self._kind(kind) for kind in KINDS if any(row.kind == kind for row in self.plan.rows)),
            floor=rate(floor.bool()),
            erased=statistic([arm[direct] for arm in seen], lambda b, a: _share(b - a, b - ground)),
            kept=statistic([arm[kept] for arm in right], _share_kept),
            leaked=statistic([arm[others] for arm in seen], lambda b, a: _share(a - ground, b - ground)),
            columns=self._columns(),
            distances=self._distances(),
            lacking=self.lacking,
        )

    def _kind(self, kind: str) -> KindFigures:
        asked = SUBJECT if kind in KEEPING else CONCEPT
        before, after = (self._at(asked, arm, kind) for arm in (BEFORE, AFTER))
        beside = None
        if kind not in KEEPING and bool(self.where([kind], subject=True).any()):
            beside = rate(self._at(SUBJECT, BEFORE, kind)), rate(self._at(SUBJECT, AFTER, kind))
        return KindFigures(kind, asked, rate(before), rate(after), paired_rates(before, after), beside)

    def _at(self, asked: str, arm: str, kind: str) -> Tensor:
        return self.column(asked, arm)[self.where([kind], subject=asked == SUBJECT)].bool()

    def _columns(self) -> dict[str, dict[str, tuple[Interval, Interval]]]:
        sides = {ERASED_SIDE: self.where(ERASING), KEPT_SIDE: self.where(KEEPING)}
        names = dict.fromkeys(name for name, _ in self.values if name not in (CONCEPT, SUBJECT))
        return {
            name: {
                side: (mean(self.column(name, BEFORE)[where].float()), mean(self.column(name, AFTER)[where].float()))
                for side, where in sides.items()
                if bool(where.any())
            }
            for name in names
        }

    def _distances(self) -> dict[str, Interval]:
        where = self.where(KEEPING)
        if self.plan.sight is None or int(where.sum()) < 2:
            return {}
        before, after = (torch.cat(self.embedded[arm])[where] for arm in (BEFORE, AFTER))
        try:
            value = frechet(before, after)
            return {"Fréchet": Interval(value, math.nan, math.nan, len(before)), "kernel": kernel(before, after)}
        except SettingError as error:
            self.lacking["distances"] = error.problem
            return {}


def _share(part: float, whole: float) -> float:
    """A share in 0..1; nan where there is nothing to take a share of."""
    return float("nan") if whole <= 0 else min(max(part / whole, 0.0), 1.0)


def _share_kept(before: float, after: float) -> float:
    return _share(after, before)
