"""Latents moved by where words look, in the real host: against a sampler written out, and whom it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList

PROMPT, OTHER = "a large red ball, flat style, on paper", "a large red tree, flat style, on paper"
BALL = ConceptList(lists=("demo-world",)).with_concept(Concept("ball", "box"))
GUARDS = ("attend_excite", "a_star")


def guarded(demo: Any, name: str = "attend_excite", gate: float = 0.0, **settings: Any) -> Any:
    """MODEL and CLIP behind the guard."""
    from lethe.nodes.guard import LetheGuard

    with torch.inference_mode():
        return LetheGuard.execute(demo[0], demo[1], BALL, gate, guard={"guard": name, **settings}).result[:2]


def sample(
    model: Any, clip: Any, prompts: tuple[str, ...] = (PROMPT,), cfg: float = 4.0, steps: int = 4, sampler: str = "ddim"
) -> Any:
    from lethe.nodes.host.sampling import encode_prompt, prompts_at_once

    import nodes

    with torch.inference_mode():
        positive, negative = prompts_at_once([encode_prompt(clip, p) for p in prompts]), encode_prompt(clip, "")
        latent = nodes.EmptyLatentImage().generate(128, 128, len(prompts))[0]
        found = nodes.KSampler().sample(model, 3, steps, cfg, sampler, "normal", positive, negative, latent)
        return found[0]["samples"]


def watched(model: Any) -> tuple[Any, list[int]]:
    """A clone that tells how many pictures each call of the network has."""
    sizes: list[int] = []
    clone = model.clone()

    def tell(apply: Any, given: Any) -> Any:
        sizes.append(len(given["input"]))
        return apply(given["input"], given["timestep"], **given["c"])

    clone.set_model_unet_function_wrapper(tell)
    return clone, sizes


def by_hand(demo: Any, steps: int, alpha: float, until: int) -> torch.Tensor:
    """Euler without guidance, whose latents are moved in place; maps of every layer from its own projections."""
    import comfy.sample
    import comfy.samplers
    from lethe.erasers.guards.attend_excite import suppressing
    from lethe.nodes.host.model import HostModel
    from lethe.nodes.host.sampling import encode_prompt

    host = HostModel(*demo[:2])
    sampling = demo[0].model.model_sampling
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", steps)
    noise = comfy.sample.prepare_noise(torch.zeros(1, 4, 16, 16), 3)
    x = noise * (1 + sigmas[0] ** 2).sqrt()
    with torch.inference_mode():
        context = encode_prompt(demo[1], PROMPT)[0][0]
    context, own = context.clone(), host.tower().content(PROMPT)
    named = torch.tensor([token in host.tower().content("ball") for token in own])
    kept: dict[str, torch.Tensor] = {}
    layers = host.modules(r"attn2\.to_[qk]$")
    hooks = [m.register_forward_hook(lambda _m, _a, out, n=n: kept.__setitem__(n, out)) for n, m in layers.items()]
    try:
        with host.ready():
            for i in range(steps):
                sigma = sigmas[i : i + 1]
                if i < until:
                    with torch.enable_grad():
                        moving = x.clone().requires_grad_()
                        host.predict(moving, sigma, context)
                        maps = []
                        for name in (n for n in kept if n.endswith("to_q")):
                            q, k = kept[name][0].unflatten(-1, (4, -1)), kept[name[:-1] + "k"][0].unflatten(-1, (4, -1))
                            shares = (torch.einsum("phc,thc->hpt", q, k) / q.shape[-1] ** 0.5).softmax(-1).mean(0)
                            maps.append(shares[:, 1 : 1 + len(own)].T.unflatten(1, (8, 8)))
                        loss = suppressing(torch.stack(maps).mean(0), named, {})
                        (gradient,) = torch.autograd.grad(loss, moving)
                    percent = float((_levels(sampling) >= sigma * (1 - 1e-6)).sum()) / 1000
                    x = x - alpha * (1 - percent / 2) ** 0.5 * (1 + sigma**2) * gradient
                with torch.no_grad():
                    x = x + (sigmas[i + 1] - sigma) * host.predict(x, sigma, context)
    finally:
        for hook in hooks:
            hook.remove()
    return x


def _levels(sampling: Any) -> torch.Tensor:
    return torch.tensor([float(sampling.percent_to_sigma(i / 1000)) for i in range(1, 1001)])


def test_the_sampler_steps_from_the_moved_latents(demo: Any) -> None:
    """As if it had moved them itself; after the window they stay where they are."""
    drawn = sample(*guarded(demo, alpha=60.0, end=0.5), cfg=1.0)
    assert torch.allclose(drawn, by_hand(demo, 4, 60.0, 2), atol=2e-3)
    assert not torch.allclose(drawn, sample(*demo[:2], cfg=1.0), atol=1e-1)


@pytest.mark.parametrize("name", GUARDS)
def test_prompts_without_the_name_are_drawn_bit_for_bit_and_cost_nothing(demo: Any, name: str) -> None:
    model, clip = guarded(demo, name)
    clone, sizes = watched(model)
    assert torch.equal(sample(clone, clip, (OTHER,)), sample(*demo[:2], (OTHER,))) and sizes == [2, 2, 2, 2]
    sizes.clear()
    sample(clone, clip, (PROMPT,))
    assert sizes == [1, 2, 1, 2, 2, 2]


def test_in_a_batch_each_prompt_is_moved_by_its_own_words(demo: Any) -> None:
    together, plain = (sample(*pair, (OTHER, PROMPT), steps=2) for pair in (guarded(demo), demo[:2]))
    assert torch.allclose(together[0], plain[0], atol=1e-4)
    assert not torch.allclose(together[1], plain[1], atol=1e-2)


def test_a_prompt_that_names_it_behind_the_gate_is_drawn_bit_for_bit(demo: Any) -> None:
    assert torch.equal(sample(*guarded(demo, gate=2.0), steps=2), sample(*demo[:2], steps=2))


def test_the_words_attention_falls(demo: Any) -> None:
    from lethe.nodes.host.looking import Looks
    from lethe.nodes.host.looking import watched as looking

    def share(pair: Any) -> float:
        place = 1 + next(i for i, token in enumerate(_content(demo, PROMPT)) if token in _content(demo, "ball"))
        looks = Looks([[place]], 77)
        sample(looking(pair[0], looks), pair[1], cfg=1.0)
        return float(looks.mean(8, 8).amax())

    assert share(guarded(demo, alpha=200.0, end=1.0)) < 0.9 * share(demo[:2])


def _content(demo: Any, text: str) -> list[int]:
    from lethe.nodes.host.model import HostModel

    return HostModel(*demo[:2]).tower().content(text)


@pytest.mark.parametrize(("name", "sampler"), [("attend_excite", "heun"), ("a_star", "euler_ancestral")])
def test_samplers_of_every_kind_take_it(demo: Any, name: str, sampler: str) -> None:
    drawn = sample(*guarded(demo, name), steps=2, sampler=sampler)
    assert drawn.isfinite().all() and not torch.allclose(drawn, sample(*demo[:2], steps=2, sampler=sampler), atol=1e-3)


def test_what_was_added_is_kept_as_noise_and_forgotten_where_sampling_begins_anew(comfy: Any) -> None:
    from lethe.erasers.nudge import Nudge
    from lethe.erasers.window import Window
    from lethe.nodes.host.nudging import Nudged

    class Told(Nudged):
        calls = 0

        def _gradient(self, *args: Any) -> torch.Tensor:
            self.calls += 1
            return torch.ones(1, 1, 1, 1)

    part: Any = Nudge(None, (), None, "flow", Window(0.0, 0.5), 2.0, 1)  # type: ignore[arg-type]
    nudged = Told(lambda guard, uuid: [])

    def look(sigma: float, percent: float) -> float:
        level = torch.tensor([sigma])
        given: Any = (None, [], torch.zeros(1, 1, 1, 1), level, {})
        return float(nudged.look(lambda *args: None, [(None, part)], given, percent))

    assert look(4.0, 0.0) == -2 and look(4.0, 0.0) == -2 and nudged.calls == 1, "a second look moves nothing more"
    assert look(2.0, 0.6) == -1 and nudged.calls == 1, "half the level has half of it"
    assert look(3.0, 0.6) == 0, "a level that rises begins anew"


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_models_that_see_velocity_and_with_two_encoders_are_moved(comfy: Any, name: str) -> None:
    """Reduced models of random weights: a prompt with the name, and one without."""
    import tiny_models
    from lethe.nodes.guard import LetheGuard

    pair = tiny_models.tiny_model(name), tiny_models.tiny_clip(name)
    concepts = ConceptList(preserve=("a tree",)).with_concept(Concept("cat", "dog"))
    with torch.inference_mode():
        guarded = LetheGuard.execute(*pair, concepts, 0.0, guard={"guard": "attend_excite"}).result[:2]
    drawn, plain = (tiny_models.sample(name, *own, "a photo of a cat on a mat") for own in (guarded, pair))
    assert drawn.isfinite().all() and float((drawn - plain).norm() / plain.norm()) > 1e-2
    other, same = (tiny_models.sample(name, *own, "a tree") for own in (guarded, pair))
    assert torch.equal(other, same)
