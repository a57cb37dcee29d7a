"""Guards on a reduced model of every family, of the host's own classes: each acts, or says what the model lacks."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import tiny_models
import torch
from lethe.erasers.capabilities import guards_verdict, is_experimental
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import FamilyError, GuardError
from lethe.erasers.gates.discriminant import Discriminant
from lethe.erasers.registry import families, guard_named, guards
from lethe.erasers.sites import GUARDS, TESTED
from tiny_models import RELATIVES, tiny
from torch import Tensor

PROMPT, OTHER, WORD = "a photo of a cat on a mat", "a tree", "cat"
CONCEPTS = ConceptList(preserve=(OTHER, "a house")).with_concept(Concept(WORD, "dog"))
NAMES = sorted(name for name, own in families().items() if own.verdict(GUARDS).state == TESTED and name != "demo")
GLUED = ("hunyuan_video",)
"""The host's Llama tokenizer loses blanks between words with transformers 5: the word stands alone there."""
WIDE = 768
"""Text features up to which LEACE is fitted here, to hundreds of encoded prompts; its part acts on all."""
SETTINGS: dict[str, dict[str, Any]] = {
    "sld": {"strength": "max"},
    "safree": {"adaptive": False, "alpha": 0.0},
    "steerers": {"steps": 2, "expansion": 1, "k": 8, "depth": 0.3},
    "h_space": {"steps": 2, "batch": 1, "pictures": 1},
    "negtome": {"threshold": -1.0},
    "scaling": {"rounds": 1},
    "leace": {"templates": "none"},
    "erase_and_check": {"d": 2},
}
NAMED = ("gog", "erase_and_check", "t2i_zero")
"""Guards that leave prompts without the concept's name alone."""


@pytest.fixture
def small(comfy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate that nothing is like, so that names alone count; references that are not drawn at full size."""
    import lethe.erasers.rewrite as rewrite
    from lethe.nodes.host.model import HostModel

    def unlike(task: Any, threshold: float) -> Discriminant:
        width = task.family.width
        nothing = torch.zeros(1, width, dtype=torch.float64)
        return Discriminant(nothing[0], nothing, torch.zeros(1, dtype=torch.long), torch.tensor([0]), threshold)

    def drawn(model: Any, prompts: list[str], *args: Any) -> Tensor:
        return torch.randn(len(prompts), *tiny_models.PLANS[model.found.family.name].latent)

    monkeypatch.setattr(rewrite, "fit_gate", unlike)
    monkeypatch.setattr(HostModel, "sample", drawn)


def prompt_of(name: str) -> str:
    return WORD if name in GLUED else PROMPT


def behind(name: str, guard: str, on: tuple[Any, Any] | None = None, **settings: Any) -> tuple[Any, Any]:
    """MODEL and CLIP behind a guard without a gate, as the node makes them."""
    from lethe.nodes.host import fit
    from lethe.nodes.host.guarding import install

    (model, clip), family, chosen = on or tiny(name), families()[name], guard_named(guard)
    with torch.inference_mode(False), torch.no_grad():
        task = fit.task_of(model, clip, CONCEPTS)
        task = replace(task, texts=fit._texts(clip, family, task.encode))
        if guard == "scaling":
            task = replace(task, pictures=torch.randn(1, *tiny_models.PLANS[name].latent))
        if guard == "attentive_eraser":
            task = replace(task, regions=torch.eye(8)[None])
        plan = chosen.plan(task, chosen.spec.settings({**SETTINGS.get(guard, {}), **settings}))
        return install(model, clip, chosen.spec.title, plan, None, family)


def draw(name: str, model: Any, clip: Any, prompt: str | None = None, **given: Any) -> Tensor:
    return tiny_models.sample(name, model, clip, prompt_of(name) if prompt is None else prompt, **given)


def moved(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in RELATIVES else []) for n in NAMES])
def test_every_guard_acts_or_says_what_the_model_lacks(name: str) -> None:
    from lethe.nodes.guard import LetheGuard

    family, plain, refused = families()[name], {}, []
    for cfg in (1.0, 3.0):
        plain[cfg] = draw(name, *tiny(name), cfg=cfg)
    other = draw(name, *tiny(name), OTHER)
    for guard, own in guards().items():
        need = own.spec.missing(family)
        if need is not None:
            refused.append(guard)
            with torch.inference_mode(), pytest.raises(FamilyError, match=re.escape(f"needs {need.what}")):
                LetheGuard.execute(*tiny(name), CONCEPTS, 0.0, guard={"guard": guard})
        elif not is_experimental(own) and (guard != "leace" or family.width <= WIDE):
            guarded = behind(name, guard)
            if guard == "negative":
                with pytest.raises(GuardError, match="CFG 1"):
                    draw(name, *guarded)
            cfg = 3.0 if guard == "negative" else 1.0
            found = draw(name, *guarded, cfg=cfg)
            assert found.isfinite().all(), guard
            alike = guard == "perp_neg" and name in GLUED  # Nothing in the concept is not in a prompt that is it.
            assert moved(found, plain[cfg]) > 1e-4 or alike, guard
            if guard in NAMED:
                assert torch.equal(draw(name, *guarded, OTHER), other), guard
    assert torch.equal(draw(name, *tiny(name)), plain[1.0])
    said = guards_verdict(family)
    assert said.state == TESTED
    assert sorted(re.findall(r"`(\w+)`", said.why)) == sorted(refused)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux", "pixart", "lumina2", "z_image", "qwen_image", "wan"])
def test_a_rewritten_prompt_is_that_prompt_in_all_that_the_model_reads(name: str) -> None:
    expected = draw(name, *tiny(name), PROMPT.replace("cat", "dog"))
    for guard in ("gog", "erase_and_check"):
        assert torch.equal(draw(name, *behind(name, guard)), expected)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux", "pixart", "z_image", "qwen_image", "wan"])
def test_features_of_the_prompt_are_edited_and_those_of_the_negative_stay(name: str) -> None:
    from lethe.erasers.guard import Guarding
    from lethe.erasers.guards.leace import Projected
    from lethe.erasers.result import ContextOperator
    from lethe.erasers.window import Window
    from lethe.nodes.host.guarding import install

    made = torch.Generator().manual_seed(4)
    width = families()[name].width
    down, up = torch.randn(2, width, generator=made) / width, torch.randn(width, 2, generator=made)
    part = Projected(ContextOperator(down=down, up=up), Window())
    edited = install(*tiny(name), "leace", Guarding(text=part), None, families()[name])

    def first(model: Any, clip: Any) -> list[Tensor]:
        seen: list[list[Tensor]] = []
        watched = model.clone()
        watched.set_model_sampler_pre_cfg_function(lambda given: seen.append(given["conds_out"]) or given["conds_out"])
        draw(name, watched, clip, cfg=3.0)
        return seen[0]

    (said, unsaid), (changed, left) = first(*tiny(name)), first(*edited)
    assert torch.allclose(unsaid, left, atol=1e-5) and moved(changed, said) > 1e-4


@pytest.mark.usefixtures("small")
def test_in_a_batch_only_the_prompt_that_asks_is_rewritten() -> None:
    import comfy.sample
    from lethe.nodes.host.sampling import encode_prompt, prompts_at_once

    def both(model: Any, clip: Any, prompts: tuple[str, str]) -> Tensor:
        noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            given, empty = prompts_at_once([encode_prompt(clip, text) for text in prompts]), encode_prompt(clip, "")
            return comfy.sample.sample(
                model, noise, 1, 1.0, "euler", "normal", given, empty, torch.zeros_like(noise), disable_pbar=True
            )

    plain = both(*tiny("sdxl"), (PROMPT.replace("cat", "dog"), OTHER))
    found = both(*behind("sdxl", "gog"), (PROMPT, OTHER))
    assert torch.allclose(found, plain, atol=1e-5)
    assert moved(found[0], both(*tiny("sdxl"), (PROMPT, OTHER))[0]) > 1e-3


@pytest.mark.usefixtures("small")
def test_the_original_prompt_comes_back_beside_the_rewritten_one() -> None:
    plain, half = draw("flux", *tiny("flux"), steps=3), behind("flux", "gog", rho=0.5, start=0.0)
    rewritten = draw("flux", *behind("flux", "gog"), steps=3)
    mixed = draw("flux", *half, steps=3)
    assert moved(mixed, rewritten) > 1e-3 and moved(mixed, plain) > 1e-3
    other = draw("flux", *tiny("flux"), OTHER, steps=3)
    # The mix has the negative predicted beside it, and a batch of two rounds otherwise.
    assert torch.allclose(draw("flux", *half, OTHER, steps=3), other, atol=1e-3)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("first", [True, False])
def test_an_edit_of_features_reaches_the_rewritten_prompt(first: bool) -> None:
    """Whichever of the two comes first; the rewritten prompt has another number of tokens than the picture's."""
    from lethe.erasers.guard import Guarding
    from lethe.erasers.guards.leace import Projected
    from lethe.erasers.result import ContextOperator
    from lethe.erasers.window import Window
    from lethe.nodes.host.guarding import install

    made, width = torch.Generator().manual_seed(4), families()["z_image"].width
    down, up = torch.randn(2, width, generator=made) / width, torch.randn(width, 2, generator=made)
    part = Guarding(text=Projected(ContextOperator(down=down, up=up), Window()))

    def edited(on: tuple[Any, Any]) -> tuple[Any, Any]:
        return install(*on, "leace", part, None, families()["z_image"])

    plain, prompt = tiny("z_image"), "a cat"
    both = behind("z_image", "gog", edited(plain)) if first else edited(behind("z_image", "gog"))
    expected = draw("z_image", *edited(plain), "a dog")
    assert torch.equal(draw("z_image", *both, prompt), expected)
    assert moved(expected, draw("z_image", *plain, "a dog")) > 1e-4


@pytest.mark.usefixtures("small")
def test_a_guard_that_reads_the_first_prompt_does_not_go_with_a_rewritten_one() -> None:
    both = behind("z_image", "t2i_zero", behind("z_image", "gog"))
    with pytest.raises(GuardError, match="rewrites this prompt"):
        draw("z_image", *both)
    assert torch.equal(draw("z_image", *both, OTHER), draw("z_image", *tiny("z_image"), OTHER))


@pytest.mark.parametrize(
    "text",
    ["a cat, (oil:1.4) - high-quality cat's 'Night'", "\u4e00\u53ea\u732b, a cat", "\ud55c\uad6d \uace0\uc591\uc774"],
)
def test_words_that_are_not_rewritten_come_back_as_they_were(comfy: Any, text: str) -> None:
    from lethe.nodes.host.towers import Words

    words = Words()
    numbers = words.read(text)
    assert words.write(numbers) == text
    assert words.read("CAT")[0] in numbers or "cat" not in text
    assert words.write([*words.read("a red"), *words.read("dog")]) == "a red dog"


def test_guards_take_every_part_of_the_features(comfy: Any) -> None:
    """SD 3: the name's rows among CLIP's tokens, and among T5's behind them."""
    from lethe.nodes.host.sampling import READINGS, encode_prompt

    _, clip = behind("sd3", "t2i_zero")
    with torch.inference_mode():
        states, extras = encode_prompt(clip, PROMPT)[0]
    (reading,) = next(iter(extras[READINGS].values()))
    first, second = reading.rows
    assert first == [5] and len(second) == 1
    assert sum(reading.lengths) == states.shape[1] and reading.lengths[0] == 77


def test_both_halves_of_two_clips_are_moved_out_of_the_concept(comfy: Any) -> None:
    """SAFREE on SDXL: its own equations on features of both encoders, by hand."""
    from lethe.nodes.host.sampling import READINGS, encode_prompt

    _, clip = behind("sdxl", "safree")
    with torch.inference_mode():
        states, extras = encode_prompt(clip, PROMPT)[0]
    (reading,) = next(iter(extras[READINGS].values()))
    assert len(reading.rows) and set(reading.rows.tolist()) <= set(range(1, 9))
    away = torch.eye(2048, dtype=torch.float64)
    with torch.inference_mode():
        concept = tiny("sdxl")[1].encode_from_tokens(tiny("sdxl")[1].tokenize(WORD))[0, 2].double()
    away -= torch.outer(concept, concept) / concept.square().sum()
    row = states[0, int(reading.rows[0])].double() @ reading.move
    assert abs(float(row @ concept)) < 1e-3 * float(row.norm() * concept.norm())
    assert float(row[:768].norm()) > 0 and float(row[768:].norm()) > 0
    assert torch.allclose(row @ away, row, atol=1e-4)


@pytest.mark.parametrize("name", ["sdxl", "cosmos2", "z_image", "hunyuan_dit"])
def test_a_gate_reads_any_encoders_features(comfy: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import lethe.erasers.gates.discriminant as discriminant
    from lethe.nodes.guard import LetheGuard

    monkeypatch.setattr(discriminant, "TEMPLATES", {"object": discriminant.TEMPLATES["object"][:3]})
    with torch.inference_mode():
        model, clip, _ = LetheGuard.execute(
            *tiny(name), CONCEPTS, 0.6, guard={"guard": "sld", "strength": "max"}
        ).result
    assert torch.equal(draw(name, model, clip, OTHER), draw(name, *tiny(name), OTHER))
    assert moved(draw(name, model, clip), draw(name, *tiny(name))) > 1e-4


@pytest.mark.parametrize("name", ["sd1", "sdxl", "flux"])
def test_t2i_zeros_suppression_acts_in_unets_and_is_refused_elsewhere(small: None, name: str) -> None:
    if not families()[name].is_unet:
        with pytest.raises(FamilyError, match="Suppression needs a UNet"):
            behind(name, "t2i_zero", suppression=1.0)
        return
    plain, (model, clip) = draw(name, *tiny(name)), behind(name, "t2i_zero", alpha=0.0, suppression=1.0)
    assert moved(draw(name, model, clip), plain) > 1e-5
    assert torch.equal(draw(name, model, clip, OTHER), draw(name, *tiny(name), OTHER))
