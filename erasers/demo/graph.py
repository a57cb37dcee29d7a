"""The leaderboard's work as ComfyUI graphs, in the form that a server runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..registry import attack_named, guard_named, method_named, recipe_named, recipes
from ..spec import MethodSpec, Value
from .making import GUARD, guard_settings, recipe_settings
from .sets import CASES

Graph = dict[str, dict[str, Any]]


def leaderboard_graph(
    word: str,
    methods: Sequence[str],
    attacks: Mapping[str, Mapping[str, Value]],
    sampling: Mapping[str, Value],
    each_kind: int,
    attacked: tuple[Sequence[str], Sequence[str]],
    name: str = "leaderboard",
) -> Graph:
    """A graph that erases a word of the demo world by each method or recipe, or guards it, evaluates, attacks, reports.

    Args:
        attacks: settings by attack; what is left out is the attack's default.
        sampling: what the nodes draw with, e.g. `{"steps": 10, "count": 2}`.
        attacked: the prompts that the attacks attack, and the other words that they try.
        name: of the files that the report writes.
    """
    concept = CASES[word]
    graph: Graph = {
        "1": _node("LetheDemoModel"),
        "2": _node("LetheConcept", text=concept.text, replacement=concept.replacement, synonyms="", weight=1.0),
        "3": _node("LethePreserve", prompts="", list="demo-world", concepts=["2", 0]),
    }
    reports: list[list[Any]] = []

    def add(kind: str, **inputs: object) -> str:
        key = str(len(graph) + 1)
        graph[key] = _node(kind, **inputs)
        return key

    for method in methods:
        on = {"model": ["1", 0], "clip": ["1", 1], "concepts": ["3", 0], "vae": ["1", 2]}
        if method.startswith(GUARD):
            plain = {"model": ["1", 0], "clip": ["1", 1], "concepts": ["3", 0]}
            own = method[len(GUARD) :]
            chosen = _chosen("guard", guard_named(own).spec, guard_settings(own, concept.text))
            erased = add("LetheGuard", **plain, gate=0.0, **chosen)
        elif method in recipes():
            chosen = _chosen("recipe", recipe_named(method).spec, recipe_settings(method, concept.text))
            erased = add("LetheTrain", **on, steps=0, learning_rate=0.0, rank=0, seed=0, look_every=0, **chosen)
        else:
            chosen = _chosen("method", method_named(method).spec, {})
            erased = add("LetheErase", **on, clip_vision=["1", 3], strength=1.0, form="hook", pooled=False, **chosen)
        pair = {
            "before": ["1", 0], "after": [erased, 0], "clip": ["1", 1], "vae": ["1", 2], "concepts": ["3", 0],
            "clip_after": [erased, 1], "clip_vision": ["1", 3], "title": method, **_SAMPLING, **sampling,
        }  # fmt: skip
        sets = {"prompts": "demo world", "lines": "", "each_kind": each_kind, "probe": "demo_judge"}
        reports.append([add("LetheEvaluate", **{**pair, "count": 1, **sets}), 0])
        asked = {
            "concept": "",
            "prompts": "\n".join(attacked[0]),
            "words": "\n".join(attacked[1]),
            "save_embedding": "",
            "probe": "demo_judge",
        }
        for attack, given in attacks.items():
            settings = _chosen("attack", attack_named(attack).spec, given)
            reports.append([add("LetheAttack", **pair, **asked, **settings), 0])
    add("LetheReport", name=name, **{f"reports.report{i}": report for i, report in enumerate(reports)})
    return graph


_SAMPLING = {
    "negative": "", "seed": 0, "count": 2, "steps": 10, "cfg": 4.0, "sampler": "ddim", "scheduler": "normal",
    "width": 128, "height": 128, "batch": 16, "clip_model": "connected",
}  # fmt: skip


def _chosen(id: str, spec: MethodSpec, given: Mapping[str, Value]) -> dict[str, Value]:
    """A choice with all its settings, as the host wants them."""
    return {id: spec.name, **{f"{id}.{name}": value for name, value in spec.settings(given).items()}}


def _node(kind: str, **inputs: object) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}
