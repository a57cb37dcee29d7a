"""Every method on the demo world, with its defaults: one concept at a time, and twenty at once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

import torch

from ..concepts import ConceptList
from ..errors import LetheError
from ..registry import methods
from .gallery import Gallery
from .grammar import CHARACTERS, COLOURS, OBJECTS, STYLES, Word
from .making import ALONE
from .trial import Bench, Case, Gone, Kept

KEEP = ConceptList(lists=("demo-world",))
ONE = (
    Case("style", "dotted", "flat"),
    Case("object", "ball", "box"),
    Case("colour", "red", "blue"),
    Case("character", "zib", "mopo"),
)
_PERCENT = 0.3
"""How far sampling has come where drift is measured."""


def _cases(kind: str, words: Sequence[Word], kept: Sequence[str]) -> list[Case]:
    """Every word but the kept ones, each replaced by one of these."""
    gone = [word.name for word in words if word.name not in kept]
    return [Case(kind, name, kept[i % len(kept)]) for i, name in enumerate(gone)]


TWENTY = (
    *_cases("object", OBJECTS, ("box", "heart", "tree")),
    *_cases("colour", COLOURS, ("blue", "yellow")),
    *_cases("style", STYLES, ("flat", "striped")),
    *_cases("character", CHARACTERS, ("mopo",)),
)


VARIANTS: dict[str, tuple[dict[str, object], ...]] = {
    "speed": ({"tokens": "last"}, {"sites": "k and v"}),
    "uce": ({"tokens": "last"},),
}
"""Settings beside the defaults that tell why a method does as it does."""


def every_method(bench: Bench, names: Sequence[str] = ()) -> list[dict[str, object]]:
    """A row per method, settings and number of concepts; `names` of methods, all when empty."""
    rows = []
    for name in names or [name for name in methods() if name not in ALONE]:
        for settings in ({}, *VARIANTS.get(name, ())):
            for cases in ([[case] for case in ONE], [list(TWENTY)]):
                rows.append(_row(bench, name, settings, cases))
                print(json.dumps(rows[-1]), flush=True)
    return rows


def _row(bench: Bench, name: str, settings: Mapping[str, object], runs: Sequence[Sequence[Case]]) -> dict[str, object]:
    """Averages over runs, each of which erases its cases at once; runs that the method refuses are counted."""
    gone: list[Gone] = []
    kept: list[Kept] = []
    drift, seconds, refused = [], [], 0
    for cases in runs:
        started = time.perf_counter()
        try:
            eraser = bench.fit(cases, settings, KEEP, name)
        except LetheError:
            refused += 1
            continue
        seconds.append(time.perf_counter() - started)
        erased = bench.gallery.erased(eraser)
        gone += [bench.gone(case, erased) for case in cases]
        kept.append(bench.kept(cases, erased))
        drift.append(noise_drift(bench.gallery, erased, cases))
    row: dict[str, object] = {
        "method": name,
        "settings": ", ".join(f"{key} {value}" for key, value in settings.items()),
        "concepts": len(runs[0]),
        "refused": refused,
    }
    if refused == len(runs):
        return row
    averages = {**_mean([asdict(entry) for entry in gone]), **_mean([asdict(entry) for entry in kept])}
    measured = {"drift": sum(drift) / len(drift), "seconds": sum(seconds) / len(seconds)}
    return {**row, **{key: round(value, 3) for key, value in {**averages, **measured}.items()}}


@torch.no_grad()
def noise_drift(before: Gallery, after: Gallery, cases: Sequence[Case]) -> float:
    """How much the noise predictions of preserved prompts move, as a share of their length.

    Works for edits of any part: both models look at the same noised pictures of the preserved words.
    """
    erased = {case.name for case in cases}
    prompts = [prompt for prompt in KEEP.kept if not erased & set(prompt.split())]
    latents = before.model.sample(prompts, 10, 4.0, seed=5)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(6))
    first, second = (
        gallery.model.predict_noise(latents, noise, _PERCENT, gallery.model.context(prompts))
        for gallery in (before, after)
    )
    return float((second - first).norm() / first.norm())


def _mean(tables: Iterable[dict[str, float]]) -> dict[str, float]:
    found = list(tables)
    return {key: sum(table[key] for table in found) / len(found) for key in found[0]}
