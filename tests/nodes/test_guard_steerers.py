"""Concept Steerers in the real host: no strength is nothing, weights of words stay, and the CLIP is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import EraserFileError

OTHER = "a large red tree, flat style, on paper"
BALL = ConceptList(lists=("demo-world",)).with_concept(Concept("ball", "box"))
PROMPT = "a large red ball, flat style, on paper"


def guarded(demo: Any, gate: float = 0.0, **settings: Any) -> Any:
    from lethe.nodes.guard import LetheGuard

    chosen = {"guard": "steerers", "steps": 20, **settings}
    with torch.inference_mode():
        return LetheGuard.execute(demo[0], demo[1], BALL, gate, guard=chosen).result


def encoded(clip: Any, prompt: str) -> Any:
    import nodes

    with torch.inference_mode():
        return nodes.CLIPTextEncode().encode(clip, prompt)[0]


def sample(model: Any, positive: Any, negative: Any) -> Any:
    import nodes

    with torch.inference_mode():
        latent = nodes.EmptyLatentImage().generate(128, 128, 1)[0]
        return nodes.KSampler().sample(model, 3, 4, 4.0, "ddim", "normal", positive, negative, latent)[0]["samples"]


def test_no_strength_changes_no_bit_and_no_encoder_is_touched(demo: Any) -> None:
    before, empty = encoded(demo[1], PROMPT), encoded(demo[1], "")
    plain = sample(demo[0], before, empty)
    model, clip, _ = guarded(demo, strength=0.0)
    assert torch.equal(sample(model, encoded(clip, PROMPT), empty), plain)
    model, clip, _ = guarded(demo)
    said = encoded(clip, PROMPT)
    assert torch.equal(said[0][0], before[0][0])
    assert not torch.allclose(sample(model, said, empty), plain, atol=1e-3)
    assert torch.equal(encoded(demo[1], PROMPT)[0][0], before[0][0])


def test_the_prompt_is_drawn_with_the_sum_of_its_features_and_the_change(demo: Any) -> None:
    """A weighted word keeps its weight: the change is added to its features."""
    weighted = PROMPT.replace("ball", "(ball:0.5)")
    model, clip, _ = guarded(demo, positions="mean")
    said = encoded(clip, weighted)
    (reading,) = next(iter(said[0][1]["lethe.readings"].values()))
    by_hand = [[said[0][0] + reading, {}]]
    empty = encoded(demo[1], "")
    assert torch.allclose(sample(model, said, empty), sample(demo[0], by_hand, empty), atol=1e-5)
    assert not torch.allclose(said[0][0], encoded(demo[1], PROMPT)[0][0], atol=1e-2)


def test_a_file_is_written_once_and_then_steers_as_the_trained_one(demo: Any) -> None:
    import folder_paths

    before = {name: value.clone() for name, value in demo[0].model_state_dict().items()}
    empty, path = encoded(demo[1], ""), Path(folder_paths.models_dir) / "steerers" / "mine" / "ball.safetensors"
    plain, passed = (sample(demo[0], encoded(demo[1], text), empty) for text in (PROMPT, OTHER))
    pictures = []
    for given in ({}, {"file": "mine/ball"}, {"file": "mine/ball.safetensors", "seed": 5, "depth": 0.2}):
        model, clip, _ = guarded(demo, gate=0.45, **given)
        pictures.append(sample(model, encoded(clip, PROMPT), empty))
        assert torch.equal(sample(model, encoded(clip, OTHER), empty), passed)
        assert path.is_file() == bool(given)
    assert torch.equal(pictures[0], pictures[1]) and torch.equal(pictures[1], pictures[2])
    assert not torch.allclose(pictures[0], plain, atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in demo[0].model_state_dict().items())


def test_a_name_that_leads_out_of_the_folder_is_refused(demo: Any, tmp_path: Path) -> None:
    for name in ("../ball", "../../input/ball", str(tmp_path / "ball")):
        with pytest.raises(EraserFileError, match="leads out of steerers"):
            guarded(demo, file=name)
    assert not list(tmp_path.iterdir())


def test_saved_graphs_keep_their_settings() -> None:
    """Settings are kept by their order, so new ones stand behind."""
    from lethe.erasers.registry import guard_named

    names = [parameter.name for parameter in guard_named("steerers").spec.parameters]
    assert names == ["strength", "positions", "latents", "depth", "expansion", "k", "steps", "seed", "file"]
