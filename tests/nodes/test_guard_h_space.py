"""A vector between the UNet's halves in the real host: where it is added, and to whose features."""

from __future__ import annotations

from typing import Any

import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.window import Window

PROMPT, OTHER = "a large red ball, flat style, on paper", "a large red tree, flat style, on paper"
BALL = ConceptList(lists=("demo-world",)).with_concept(Concept("ball", "box"))
VECTOR = torch.linspace(-3, 3, 128)


def added(demo: Any, gate: float = 0.0, vector: torch.Tensor = VECTOR, end: float = 1.0) -> Any:
    """MODEL and CLIP with a vector that nothing had to learn."""
    from lethe.erasers.gates.discriminant import fit_gate
    from lethe.erasers.guard import Guarding, Middle
    from lethe.nodes.host.fit import task_of
    from lethe.nodes.host.guarding import install

    with torch.inference_mode(False), torch.no_grad():
        asked = fit_gate(task_of(demo[0], demo[1], BALL), gate) if gate else None
        return install(demo[0], demo[1], "h_space", Guarding(middle=Middle(vector, Window(0.0, end))), asked)


def sample(model: Any, clip: Any, prompts: tuple[str, ...] = (PROMPT,), cfg: float = 4.0, steps: int = 4) -> Any:
    from lethe.nodes.host.sampling import encode_prompt, prompts_at_once

    import nodes

    with torch.inference_mode():
        positive, negative = prompts_at_once([encode_prompt(clip, p) for p in prompts]), encode_prompt(clip, "")
        latent = nodes.EmptyLatentImage().generate(128, 128, len(prompts))[0]
        return nodes.KSampler().sample(model, 3, steps, cfg, "ddim", "normal", positive, negative, latent)[0]["samples"]


def test_sampling_adds_it_where_training_does(demo: Any) -> None:
    """Behind the last layer of the middle block: the hook that training uses draws the same picture at CFG 1."""
    from lethe.erasers.algebra.hooks import hooked
    from lethe.erasers.guards.h_space import _adding, _last
    from lethe.nodes.host.model import HostModel

    guarded = sample(*added(demo), cfg=1.0)
    assert not torch.allclose(guarded, sample(*demo[:2], cfg=1.0), atol=1e-1)
    with hooked([(_last(HostModel(*demo[:2]))[1], _adding(lambda: VECTOR[None]))]):
        assert torch.allclose(guarded, sample(*demo[:2], cfg=1.0), atol=1e-3)


def test_the_negatives_rows_are_left_alone(demo: Any) -> None:
    def first(model: Any, clip: Any) -> list[torch.Tensor]:
        seen: list[list[torch.Tensor]] = []
        watched = model.clone()
        watched.set_model_sampler_pre_cfg_function(lambda given: seen.append(given["conds_out"]) or given["conds_out"])
        sample(watched, clip, steps=1)
        return seen[0]

    (said, unsaid), (changed, left) = first(*demo[:2]), first(*added(demo))
    assert torch.allclose(unsaid, left, atol=1e-5) and not torch.allclose(said, changed, atol=1e-2)


def test_in_a_batch_only_the_prompts_that_pass_the_gate_are_changed(demo: Any) -> None:
    plain, changed = sample(*demo[:2], (OTHER, PROMPT)), sample(*added(demo, 0.45), (OTHER, PROMPT))
    assert torch.equal(plain[0], changed[0])
    assert not torch.allclose(plain[1], changed[1], atol=1e-1)


def test_vectors_of_two_guards_add_up(demo: Any) -> None:
    both = sample(*added(added(demo, vector=0.25 * VECTOR), vector=0.75 * VECTOR))
    assert torch.allclose(both, sample(*added(demo)), atol=1e-3)


def test_it_ends_with_its_window(demo: Any) -> None:
    import nodes

    def half(model: Any, clip: Any, start: int) -> Any:
        with torch.inference_mode():
            text, latent = (
                nodes.CLIPTextEncode().encode(clip, PROMPT)[0],
                nodes.EmptyLatentImage().generate(128, 128)[0],
            )
            given = (model, "enable", 3, 4, 1.0, "ddim", "normal", text, text, latent, start, start + 2, "disable")
            return nodes.KSamplerAdvanced().sample(*given)[0]["samples"]

    early, plain = added(demo, end=0.5), demo[:2]
    assert torch.equal(half(*early, 2), half(*plain, 2))
    assert not torch.allclose(half(*early, 0), half(*plain, 0), atol=1e-2)


def test_what_is_learned_makes_the_concepts_prompt_draw_its_replacement(demo: Any) -> None:
    """With a gate, other prompts stay; the loss on pictures of the replacement falls."""
    from lethe.erasers.algebra.hooks import hooked
    from lethe.erasers.guards.h_space import Budget, _adding, _last, draw_lessons, learn_directions
    from lethe.nodes.host.fit import task_of

    with torch.inference_mode(False), torch.no_grad():
        task = task_of(demo[0], demo[1], BALL)
        lessons = draw_lessons(task, "none", 4)
        vector = learn_directions(task, lessons, Budget(12, 0.1, 4))
        model, latents = task.loaded(), lessons.latents
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(5))
        sigma = model.level(torch.full((4,), 0.4))
        context = torch.stack([prompt.states for prompt in task.encode(list(lessons.prompts))])

        def error(weight: float) -> float:
            with model.ready(), hooked([(_last(model)[1], _adding(lambda: weight * vector.expand(4, -1)))]):
                seen = model.predict(latents + sigma[:, None, None, None] * noise, sigma, context)
            return float((seen - noise).square().mean())

        assert error(1.0) < 0.95 * error(0.0) < error(-1.0)
