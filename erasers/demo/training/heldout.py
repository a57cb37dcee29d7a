"""The held-out table: what the judge reads off pictures of prompts that training never showed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from ..gallery import Gallery
from ..grammar import EMBLEM, EMBLEM_HINTS, Scene, describe, draw_scene
from ..judge import Judge, Reading
from ..world import CFG, STEPS, weights_digest

SEED = 2024
Check = Callable[[Scene, Reading], bool]
SINGLE: dict[str, Check] = {
    "object": lambda scene, reading: reading.object == scene.objects[0][0],
    "colour": lambda scene, reading: reading.colour == scene.objects[0][1],
    "style": lambda scene, reading: reading.style == scene.style,
    "background": lambda scene, reading: reading.background == scene.background,
}
FIGURE: dict[str, Check] = {
    "figure": lambda scene, reading: reading.figure == (scene.character or EMBLEM),
    "background": SINGLE["background"],
}
PAIR: dict[str, Check] = {
    "either object": lambda scene, reading: reading.object in [name for name, _ in scene.objects],
    "style": SINGLE["style"],
}


def held_out_table(gallery: Gallery, judge: Judge, prompts: int = 500) -> dict[str, dict[str, float]]:
    """Accuracy per group of prompts and kind of reading.

    Args:
        prompts: number of held-out single-object prompts; the other groups have two fifths of it.
    """
    rng = random.Random(SEED)
    some = prompts * 2 // 5
    groups: dict[str, tuple[list[Scene], list[str], dict[str, Check]]] = {}

    def add(name: str, scenes: list[Scene], checks: dict[str, Check], aliases: float = 0.0, said: str = "") -> None:
        captions = [
            said.format(rng.choice(EMBLEM_HINTS)) or describe(s, rng, aliases, complete=not aliases) for s in scenes
        ]
        groups[name] = scenes, captions, checks

    add("single object, held-out combinations", [draw_scene(rng, True, "single") for _ in range(prompts)], SINGLE)
    add("single object, seen combinations", [draw_scene(rng, False, "single") for _ in range(some)], SINGLE)
    add("characters", [draw_scene(rng, kind="character") for _ in range(some)], FIGURE)
    add("emblem, named", [draw_scene(rng, kind="emblem") for _ in range(some)], FIGURE)
    hinted = [Scene("emblem") for _ in range(some)]
    add("emblem, hinted at", hinted, {"figure": FIGURE["figure"]}, said="a {}, on paper")
    add("two objects", [draw_scene(rng, kind="pair") for _ in range(some)], PAIR)
    table = {}
    for name, (scenes, captions, checks) in groups.items():
        readings = judge.read(gallery.draw(captions, seed=SEED))
        pairs = list(zip(scenes, readings, strict=True))
        rates = {kind: sum(check(*pair) for pair in pairs) / len(pairs) for kind, check in checks.items()}
        table[name] = {"pictures": len(pairs), **{kind: round(rate, 3) for kind, rate in rates.items()}}
    return table


def write_table(table: dict[str, dict[str, float]], folder: Path) -> None:
    """Write the table as JSON and as Markdown."""
    content = {"weights": weights_digest(), "table": table}
    (folder / "held_out.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# What the demo model draws",
        "",
        f"Accuracy of the judge's readings, {STEPS} DDIM steps, guidance {CFG:g}, seed {SEED}, bfloat16 autocast.",
        "Held-out combinations of object, colour and style were never shown to any network in training.",
        "",
        "| prompts | pictures | readings |",
        "|---|---|---|",
    ]
    for name, row in table.items():
        readings = ", ".join(f"{kind} {rate:.3f}" for kind, rate in row.items() if kind != "pictures")
        lines.append(f"| {name} | {row['pictures']} | {readings} |")
    (folder / "held_out.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
