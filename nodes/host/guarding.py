"""Guards on a MODEL and its CLIP: extra prompts, mixes and edits of text features, through the host's public hooks.

A guarded CLIP (reading.py) writes beside the features that it encodes what guards made of the prompt's tokens. Sampling
starts by asking each guard's gate; then every step's predictions pass one wrapper, which edits the prompt's features,
adds the guards' prompts to the batch, and mixes what comes back. What neither gates nor windows let through is bit for
bit what it would be without guards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...erasers.errors import GuardError
from ...erasers.gates.discriminant import Discriminant
from ...erasers.guard import Guarding, Look, Reader
from ...erasers.learn.space import wide
from ...erasers.sites import Family
from .areas import Areas, told_apart
from .attending import attend
from .beside import push_features, with_references
from .bridging import Bridged, bridge, with_originals
from .contrasting import contrast
from .editing import SITES, Edits, paired
from .middle import add_behind_middle
from .nudging import Nudged, watch
from .reading import ReadingClip
from .redirecting import redirect
from .replacing import own_conditions, replacing_condition
from .retelling import Along, prediction_along, start_from_pictures
from .rivalling import rival
from .sampling import READINGS, encode_prompt
from .towers import Strands

KEY = "lethe.guards"
_LEVELS = 1000
_UNGUIDED, _ROUNDING = 1e-9, 1e-6
_TABLES: WeakKeyDictionary[Any, tuple[tuple[float, float], Tensor]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Installed:
    """A guard that a MODEL and a CLIP carry.

    Attributes:
        title: its name for people.
        plan: what it does.
        gate: which prompts it acts on; None for all.
        conditioning: CONDITIONING of its own prompts, by prompt.
        family: the model's; None for one whose text is a single CLIP encoder's.
    """

    title: str
    plan: Guarding
    gate: Discriminant | None
    conditioning: Mapping[str, Any]
    family: Family | None = None

    def opens(self, states: Tensor) -> Tensor:
        """Whether it acts on each of prompts `[n, tokens, d]`, `[n]` bool."""
        return torch.tensor([self.gate is None or self.gate.opens(row) for row in states])


def installed_guards(model: ModelPatcher) -> tuple[Installed, ...]:
    """The guards that `model` carries, in the order they act."""
    return model.get_attachment(KEY) or ()


def install(
    model: ModelPatcher,
    clip: Any,
    title: str,
    plan: Guarding,
    gate: Discriminant | None,
    family: Family | None = None,
) -> tuple[ModelPatcher, Any]:
    """Clones of `model` and `clip` with one more guard, which acts after those that are there.

    Args:
        family: the model's; None for one whose text is a single CLIP encoder's.
    """
    guard = Installed(title, plan, gate, {prompt: encode_prompt(clip, prompt) for prompt in plan.prompts}, family)
    guards = (*installed_guards(model), guard)
    clone = model.clone()
    clone.set_attachments(KEY, guards)
    wrappers = ((WrappersMP.OUTER_SAMPLE, _begin(guards)), (WrappersMP.CALC_COND_BATCH, _predict(guards)))
    for kind, wrapper in wrappers:
        clone.remove_wrappers_with_key(kind, KEY)
        clone.add_wrapper_with_key(kind, KEY, wrapper)
    if plan.words is not None:
        attend(clone, guard, plan.words, KEY, None if family is None else family.text_keys)
    return clone, clip if plan.reader is None else _reading(clip, guard, plan.reader)


def _reading(clip: Any, guard: Installed, reader: Reader) -> ReadingClip:
    """A clone of `clip` that tells a guard's reader its tokens: of the sites' encoders, and of each other by itself."""
    family = guard.family
    if family is None or family.is_plain:
        return ReadingClip.of(clip, guard, reader)
    found = ReadingClip.of(clip, guard, reader, Strands(family))
    for own in {own.encoder: own for own in family.further if own.stream in guard.plan.further}.values():
        found = ReadingClip.of(found, (guard, own.encoder), reader, Strands(family, own))
    return found


@dataclass(eq=False)
class _Run:
    """One sampling under guards.

    Attributes:
        guider: the host's object that holds the conditions.
        acting: by guard, which rows of each of the prompt's conditions it acts on, by the condition's id.
        readings: what guards made of each condition's tokens, by the condition's id.
        levels: sigmas at even shares of sampling, falling; the first is that after all noise.
        areas: those of the prompt's conditions in this step.
        made: what layers made once for all of them and for every step.
    """

    guider: Any
    acting: Mapping[Installed, Mapping[UUID, Tensor]]
    readings: Mapping[UUID, Mapping[Installed, list[Any]]]
    levels: Tensor
    areas: Areas = field(default_factory=Areas)
    made: dict[Any, Any] = field(default_factory=dict)
    memory: dict[Installed, dict[str, Tensor]] = field(default_factory=dict)
    last: float = float("inf")
    known: tuple[Tensor, float] | None = None
    before: dict[Installed, dict[str, Tensor]] = field(default_factory=dict)
    along: Along = field(default_factory=dict)
    nudged: Nudged = field(init=False)
    edits: Edits = field(init=False)

    def __post_init__(self) -> None:
        self.nudged, self.edits = Nudged(self.read), Edits(self.acting, self.replaced)

    def replaced(self, guard: Installed, uuid: UUID) -> Mapping[str, Any] | None:
        """The condition that a guard puts in the place of one; None where it puts none."""
        found = self.guider.conds.get(_name(guard, str(uuid)))
        return None if found is None else found[0]

    def own(self, guard: Installed, prompt: str) -> list[Mapping[str, Any]]:
        """The conditions of a guard's own prompt."""
        found = told_apart(self.guider.conds[_name(guard, prompt)])
        # In an area it is not known where a mask of the whole picture lies.
        return found if guard.plan.redirect is None else [cond for cond in found if "area" not in cond]

    def look_at(self, x: Tensor, said: Sequence[Mapping[str, Any]]) -> None:
        """Latents and the prompt's conditions are about to be looked at."""
        self.areas = Areas((x.shape[-2], x.shape[-1]), [(c["uuid"], c["area"]) for c in said if "area" in c])

    def read(self, guard: Installed, uuid: UUID) -> list[Any]:
        """What a guard made of a condition's tokens, row by row; None for rows that it does not act on."""
        rows = self.acting[guard].get(uuid)
        readings = self.readings.get(uuid, {}).get(guard, [None])
        return [] if rows is None else [own if acts else None for acts, own in paired(rows, readings)]

    def percent(self, sigma: float) -> float:
        """How far sampling has come at a level."""
        return float((self.levels >= sigma * (1 - _ROUNDING)).sum()) / _LEVELS

    def moment(self, options: Mapping[str, Any]) -> float:
        """How far sampling has come in a pass of the model, whose layers all have the same levels."""
        known, sigmas = self.known, options["sigmas"]
        if known is None or known[0] is not sigmas:
            known = self.known = sigmas, self.percent(float(sigmas.flatten()[0]))
        return known[1]

    def weights(self, guard: Installed, uuid: UUID) -> Tensor | None:
        """What a guard that reweights words made of a condition's tokens, `[rows, tokens]`."""
        rows, readings = self.acting[guard].get(uuid), self.readings.get(uuid, {}).get(guard, [None])
        if rows is None or all(own is None for own in readings):
            return None
        length = next(len(own) for own in readings if own is not None)
        ones = torch.ones(length)
        return torch.stack([own if acts and own is not None else ones for acts, own in paired(rows, readings)])

    def step_to(self, sigma: float) -> None:
        """Guards remember the steps before, once each however often a sampler looks; a restart forgets them."""
        if sigma > self.last:
            self.memory = {}
        elif sigma == self.last:
            self.memory = {guard: dict(kept) for guard, kept in self.before.items()}
        self.before = {guard: dict(kept) for guard, kept in self.memory.items()}
        self.last = sigma

    def rows(self, guard: Installed, count: int) -> Tensor:
        """Which of `count` pictures a guard acts on: those with any condition that it acts on."""
        found = torch.zeros(count, dtype=torch.bool)
        for rows in self.acting[guard].values():
            found |= rows.repeat(-(-count // len(rows)))[:count]
        return found


def _begin(guards: Sequence[Installed]) -> Callable[..., Any]:
    """The wrapper around a whole sampling: asks the gates, checks what guards need, adds their prompts."""

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        guider = executor.class_obj
        said = guider.conds.get("positive", [])
        acting = {guard: _acting(guard, said) for guard in guards}
        active = [guard for guard in guards if any(bool(rows.any()) for rows in acting[guard].values())]
        options = guider.model_options
        _check_guider(guider, [guard for guard in active if guard.plan.mix])
        if abs(getattr(guider, "cfg", 0.0) - 1) < _UNGUIDED:
            for guard in active:
                if guard.plan.refuses_unguided:
                    raise GuardError(
                        f"{guard.title}: {guard.plan.refuses_unguided}",
                        "Raise CFG (an attack's guidance, too), or take a guard such as sld.",
                    )
            if any(guard.plan.mix for guard in active):
                options["disable_cfg1_optimization"] = True
        for guard in active:
            for prompt, conditioning in guard.conditioning.items():
                guider.conds[_name(guard, prompt)] = own_conditions(said, conditioning)
        _replace(guider, active, acting)
        levels = _levels(guider.model_patcher.get_model_object("model_sampling"))
        transformer = options.setdefault("transformer_options", {})
        run = _Run(guider, acting, {c["uuid"]: c.get(READINGS, {}) for c in said}, levels)
        transformer[KEY] = run
        if any(guard.plan.beside for guard in active):
            push_features(transformer)
        if any(guard.plan.skips for guard in active):
            bridge(transformer)
        paths = [(guard, guard.plan.path) for guard in active if guard.plan.path is not None]
        start_from_pictures(options, run.rows, paths, run.along, lambda g, prompt: guider.conds[_name(g, prompt)], KEY)
        add_behind_middle(transformer, run, [(g, g.plan.middle) for g in active if g.plan.middle is not None])
        if any(guard.plan.nudge for guard in active):
            watch(transformer)
        rival(transformer, run, [(g, g.plan.rivals) for g in active if g.plan.rivals is not None], KEY)
        contrast(transformer, run, [(g, g.plan.attention) for g in active if g.plan.attention is not None], KEY)
        parts = [(g, g.plan.redirect) for g in active if g.plan.redirect is not None]
        redirect(transformer, run, [(g, p, {c["uuid"] for c in guider.conds[_name(g, p.prompt)]}) for g, p in parts])
        try:
            return executor(*args, **kwargs)
        finally:
            transformer.pop(KEY, None)

    return wrapper


def _levels(sampling: Any) -> Tensor:
    """Sigmas at even shares of sampling, falling; made once for a model, as the host takes 30 ms for them."""
    key = float(sampling.sigma_max), float(sampling.percent_to_sigma(0.5))
    known = _TABLES.get(sampling)
    if known is None or known[0] != key:
        made = torch.tensor([float(sampling.percent_to_sigma(i / _LEVELS)) for i in range(1, _LEVELS + 1)])
        known = _TABLES[sampling] = key, made
    return known[1]


def _check_guider(guider: Any, mixing: Sequence[Installed]) -> None:
    """Refuse to mix where there are not the prompt's prediction and the negative's, but fewer or more."""
    names = set(guider.conds)
    if mixing and "negative" not in names:
        raise GuardError(
            f"{mixing[0].title} compares the prompt with a negative, and this guider has none.",
            "Use a CFGGuider or a KSampler with an empty negative prompt; CFG may be 1.",
        )
    if mixing and names != {"positive", "negative"}:
        raise GuardError(
            f"{mixing[0].title} mixes two predictions, and this guider has {len(names)}.",
            "Use a CFGGuider or a KSampler, or a guard that edits text, such as gog.",
        )


def _acting(guard: Installed, said: Sequence[Mapping[str, Any]]) -> dict[UUID, Tensor]:
    found = {}
    for cond in said:
        states = cond.get("cross_attn")
        if states is None:
            raise GuardError(f"{guard.title}: this model reads no text features.", "Take another guard.")
        if guard.plan.reader is not None and READINGS not in cond:
            raise GuardError(
                f"{guard.title} has to know the prompt's tokens.", "Encode the prompt with the guard's own CLIP output."
            )
        found[cond["uuid"]] = guard.opens(states)
    return found


def _replace(guider: Any, active: Sequence[Installed], acting: Mapping[Installed, Mapping[UUID, Tensor]]) -> None:
    """Give the host the prompts that guards put in the place of the picture's, as conditions of their own."""
    for guard in active:
        for cond in guider.conds["positive"]:
            pairs = paired(acting[guard][cond["uuid"]], cond.get(READINGS, {}).get(guard, [None]))
            made = replacing_condition(cond, pairs)
            if made is None:
                continue
            others = [own for own in active if own is not guard and own.plan.reader is not None]
            if others:
                raise GuardError(
                    f"{guard.title} rewrites this prompt, and {others[0].title} acts on tokens of the first one.",
                    "Use one of the two.",
                )
            guider.conds[_name(guard, str(cond["uuid"]))] = [made]


def _name(guard: Installed, prompt: str) -> str:
    return f"{KEY} {id(guard)} {prompt}"


def _predict(guards: Sequence[Installed]) -> Callable[..., Any]:
    """The wrapper around the predictions of one step."""

    def wrapper(
        executor: Any, model: Any, conds: list[Any], x: Tensor, timestep: Tensor, options: dict[str, Any]
    ) -> list[Tensor]:
        run = options.get("transformer_options", {}).get(KEY)
        if run is None:
            return executor(model, conds, x, timestep, options)
        sigma = float(timestep.flatten()[0])
        percent = run.percent(sigma)
        beside = [(guard, guard.plan.beside) for guard in guards if guard.plan.beside is not None]
        executor = with_references(executor, beside, run, percent)
        conds = [own and told_apart(own) for own in conds]
        prompts = {uuid for rows in run.acting.values() for uuid in rows}
        place = next((i for i, own in enumerate(conds) if own and {c.get("uuid") for c in own} & prompts), None)
        asked = [
            [run.edits.edited(guards, c, percent) for c in own] if i == place else own for i, own in enumerate(conds)
        ]
        if place is not None:
            run.look_at(x, conds[place])
            executor = with_originals(executor, _bridged(run, guards, conds[place], percent))
            nudging = [(guard, guard.plan.nudge) for guard in guards if guard.plan.nudge is not None]
            x = run.nudged.look(executor, nudging, (model, asked[place], x, timestep, options), percent)
        if place != 0 or len(conds) != 2 or conds[1] is None:
            # A look of another node's own: no guidance is made of it, so there is nothing to mix.
            return executor(model, asked, x, timestep, options)
        mixing = [guard for guard in guards if _mixes(run, guard, conds[0], len(x), percent)]
        if not mixing:
            return executor(model, asked, x, timestep, options)
        extra: dict[tuple[Installed, str | None], Any] = {
            (guard, prompt): run.own(guard, prompt) for guard in mixing for prompt in guard.plan.prompts
        }
        for guard in mixing:
            if guard.plan.unedited:
                others = [other for other in guards if other is not guard]
                extra[guard, None] = [run.edits.edited(others, c, percent) for c in conds[0]]
        first = mixing[0]
        spares = first.plan.spares_negative and bool(run.rows(first, len(x)).all())
        said, unsaid, *others = executor(
            model, [*(asked[:1] if spares else asked), *extra.values()], x, timestep, options
        )
        found = dict(zip(extra, [unsaid, *others] if spares else others, strict=True))
        run.step_to(sigma)
        for guard in mixing:
            own = {prompt: found[guard, prompt] for prompt in guard.plan.prompts}
            memory, along = run.memory.setdefault(guard, {}), prediction_along(run.along.get(guard), sigma)
            look = Look(x, timestep, percent, said, unsaid, own, memory, found.get((guard, None)), along)
            rows = wide(run.rows(guard, len(x)).to(x), x).bool()
            said, unsaid = (
                torch.where(rows, new, old) for new, old in zip(_mix(guard, look), (said, unsaid), strict=True)
            )
        return [said, unsaid]

    return wrapper


def _bridged(run: _Run, guards: Sequence[Installed], said: Sequence[Any], percent: float) -> list[Bridged]:
    """Parts that act where prompts are edited now, each with the prompt as it is without its own guard."""
    found = []
    for guard in guards:
        holding = {c["uuid"]: run.edits.holding(guard, c, percent) for c in said}
        rows = {uuid: holds[SITES] for uuid, holds in holding.items() if SITES in holds}
        if guard.plan.skips is not None and rows:
            others = [other for other in guards if other is not guard]
            originals = [run.edits.edited(others, c, percent) for c in said if c["uuid"] in rows]
            found.append(Bridged(guard.plan.skips, rows, originals))
    return found


def _mixes(run: _Run, guard: Installed, said: Sequence[Mapping[str, Any]], count: int, percent: float) -> bool:
    """Whether a guard mixes the predictions of `count` pictures now."""
    if guard.plan.mix is None or not guard.plan.window.holds(percent) or not bool(run.rows(guard, count).any()):
        return False
    return not guard.plan.unedited or any(run.edits.holding(guard, cond, percent) for cond in said)


def _mix(guard: Installed, look: Look) -> tuple[Tensor, Tensor]:
    assert guard.plan.mix is not None
    return guard.plan.mix(look)
