"""An attack judged: what the attacked prompts and what the attack found bring back, on both models, same seeds.

Four arms, since an attack that fails on the untouched model says nothing, and a concept that plain prompts bring
back was not erased in the first place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..concepts import Concept, ConceptList
from ..errors import SettingError
from ..painter import Cue, Painter, Shot
from ..probe import CONCEPT, Probe, View
from ..prompts import NEAR, PromptRow
from ..sight import Sight
from ..spec import Value
from ..target import Attack, Found, Target
from .intervals import Interval, rate

PLAIN, ATTACKED = "plain", "attacked"
BASE, GUARDED = "untouched", "edited"


@dataclass(frozen=True)
class Siege:
    """What an attack came to.

    Attributes:
        found: what it found.
        shown: share of pictures that show the concept, by model (`BASE`, `GUARDED`) and prompt (`PLAIN`, `ATTACKED`).
        pre_asr: share of prompts that show it in any of their pictures, edited model, no attack.
        asr: share of prompts that show it in any of their pictures, edited model, without or with the attack.
        pictures: of the edited model: `[2 * prompts, 3, h, w]`, each prompt's first plain one, then its attacked one.
    """

    found: Found
    shown: Mapping[tuple[str, str], Interval]
    pre_asr: Interval
    asr: Interval
    pictures: Tensor


@dataclass(frozen=True)
class Shows:
    """Says of pictures `[n, 3, h, w]` whether they show a concept, `[n]` bool, as a probe sees it.

    Attributes:
        probe, settings: the recogniser and its checked settings.
        concept: what is looked for.
        concepts: the list it is from; what is preserved tells a zero-shot probe what else a picture may show.
        sight: an image encoder, for probes that need one.

    Raises (when called):
        SettingError: the probe lacks something.
    """

    probe: Probe
    settings: Mapping[str, Value]
    concept: Concept
    concepts: ConceptList
    sight: Sight | None = None

    def __call__(self, pictures: Tensor) -> Tensor:
        rows = tuple(PromptRow(self.concept.text, concept=self.concept.text) for _ in pictures)
        view = View(rows, pictures, pictures, self.concepts, {NEAR: self.concepts.preserve}, self.sight)
        missing = self.probe.lacks(view)
        if missing:
            raise SettingError(f"Probe '{self.probe.spec.name}' cannot judge.", missing)
        return self.probe.look(view, self.settings)[CONCEPT].bool()


@dataclass(frozen=True)
class Seen:
    """Pictures of prompts with one model: `[prompts, count, 3, h, w]`, and whether they show the concept, bool."""

    pictures: Tensor
    shown: Tensor


def look(target: Target, painter: Painter, cues: Sequence[Cue], count: int) -> Seen:
    """Draw each cue with the `count` seeds that figures are taken from."""
    shots = [Shot(cue, target.seed + i) for cue in cues for i in range(count)]
    pictures = painter.paint(shots)
    shape = len(cues), count
    return Seen(pictures.reshape(*shape, *pictures.shape[1:]), target.shows(pictures).reshape(shape))


@dataclass(frozen=True)
class Plain:
    """The attacked prompts as they are, drawn by both models; the same for every attack on a target."""

    base: Seen
    guarded: Seen


def look_plain(target: Target, base: Painter, count: int) -> Plain:
    """Draw the prompts with the untouched model's painter and the target's."""
    return Plain(*(look(target, painter, target.plain(), count) for painter in (base, target.painter)))


def besiege(attack: Attack, settings: Mapping[str, Value], target: Target, base: Painter, plain: Plain) -> Siege:
    """Run an attack and judge it on seeds that it has not seen, as many per prompt as `plain` has.

    Args:
        settings: checked settings of the attack.
        base: draws with the untouched model.
    """
    found = attack.run(target, settings)
    count = plain.base.shown.shape[1]
    attacked = {BASE: look(target, base, found.cues, count), GUARDED: look(target, target.painter, found.cues, count)}
    arms = {(BASE, PLAIN): plain.base, (GUARDED, PLAIN): plain.guarded}
    arms |= {(model, ATTACKED): seen for model, seen in attacked.items()}
    before, after = plain.guarded.shown.any(1), attacked[GUARDED].shown.any(1)
    pairs = torch.stack([plain.guarded.pictures[:, 0], attacked[GUARDED].pictures[:, 0]], 1)
    return Siege(
        found,
        {key: rate(seen.shown.flatten()) for key, seen in arms.items()},
        rate(before),
        rate(before | after),
        pairs.flatten(0, 1),
    )
