"""Words turned down in every family's attention, on reduced models of the host's own classes.

What a muted word gives nothing to is computed in another way beside it: hooks on the layers that make a token's value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import tiny_models
import torch
from lethe.erasers.errors import FamilyError, GuardError
from lethe.erasers.registry import families
from lethe.erasers.sites import NO, TESTED, WORDS
from tiny_models import RELATIVES, tiny
from torch import Tensor

PROMPT, OTHER, WORD = "a photo of a cat on a mat", "a tree", "cat"
FLUX = ((r"double_blocks\.\d+\.txt_attn\.qkv$", 2), (r"single_blocks\.\d+\.linear1$", 2))
UNET = ((r"\.attn2\.to_v$", 0),)
VALUES: dict[str, Sequence[tuple[str, int]]] = {
    "auraflow": (
        (r"double_layers\.\d+\.attn\.w1v$", 0),
        (r"single_layers\.\d+\.attn\.w1v$", 0),
    ),
    "boogu": ((r"\.instruct_to_v$", 0), (r"^single_stream_layers\.\d+\.attn\.to_v$", 0)),
    "chroma": FLUX,
    "cogvideox": ((r"^blocks\.\d+\.v$", 0),),
    "cosmos1": ((r"blocks\.1\.block\.attn\.to_v\.0$", 0),),
    "cosmos2": ((r"cross_attn\.v_proj$", 0),),
    "flux": FLUX,
    "flux2": FLUX,
    "flux2_klein_4b": FLUX,
    "flux2_klein_9b": FLUX,
    "hunyuan_image": FLUX,
    "hunyuan_video": FLUX,
    "hunyuan_video15": FLUX,
    "ideogram4": ((r"attention\.qkv$", 2),),
    "joyimage": ((r"\.txt_attn_qkv$", 2),),
    "kandinsky5": ((r"\.cross_attention\.to_value$", 0),),
    "longcat_image": FLUX,
    "ltxv": ((r"attn2\.to_v$", 0),),
    "lumina2": ((r"^layers\.\d+\.attention\.qkv$", 2),),
    "mage_flow": ((r"attn\.add_v_proj$", 0),),
    "mochi": ((r"\.attn\.qkv_y$", 2),),
    "omnigen2": ((r"^layers\.\d+\.attn\.to_v$", 0),),
    "ovis_image": FLUX,
    "qwen_image": ((r"attn\.add_v_proj$", 0),),
    "sd1": UNET,
    "sd2": UNET,
    "sd3": ((r"context_block\.attn\.qkv$", 2),),
    "sdxl": UNET,
    "sdxl_refiner": UNET,
    "wan": ((r"cross_attn\.v$", 0),),
    "z_image": ((r"^layers\.\d+\.attention\.qkv$", 2),),
}
"""Layers that make values of a prompt's tokens, and how many parts as wide stand before the values in their output."""
FRONT = {"auraflow": 8}
"""Tokens of the model's own before the prompt's."""
LONG = {"flux2": 512}
"""Tokens that the host makes prompts as long as, by zeros in front of them."""
GLUED = ("hunyuan_video",)
"""The host's Llama tokenizer loses blanks between words with transformers 5: the word stands alone there."""


def prompt_of(name: str) -> str:
    return WORD if name in GLUED else PROMPT


def reweighted(name: str, words: str = WORD, **given: Any) -> tuple[Any, Any]:
    """MODEL and CLIP with words reweighted."""
    from lethe.nodes.attention import LetheAttention

    settings: dict[str, Any] = {"end_weight": 1.0, "start": 0.0, "end": 1.0, "blocks": "all", "mode": "scale"} | given
    with torch.inference_mode():
        return LetheAttention.execute(*tiny(name), words, **settings).result


def draw(name: str, model: Any, clip: Any, prompt: str | None = None, **given: Any) -> Tensor:
    return tiny_models.sample(name, model, clip, prompt_of(name) if prompt is None else prompt, **given)


@contextmanager
def valueless(name: str) -> Iterator[None]:
    """The family's model with values of zero at the word's tokens, wherever a layer makes values of a prompt."""
    from lethe.nodes.host.conditioning import phrase_rows

    model, clip = tiny(name)
    rows = [row for place in phrase_rows(clip, families()[name], prompt_of(name), WORD) for row in place]
    assert rows
    tokens = clip.encode_from_tokens(clip.tokenize(prompt_of(name))).shape[1]
    front = FRONT.get(name, 0) + max(LONG.get(name, 0) - tokens, 0)

    def zeroing(parts: int) -> Any:
        def hook(module: Any, args: Any, output: Tensor) -> Tensor:
            # Cosmos 1 has its batch behind the tokens.
            found, axis = output.clone(), 0 if name == "cosmos1" else 1
            width = module.in_features if parts else output.shape[-1]
            values = found.narrow(-1, parts * width, width)
            values.index_fill_(axis, torch.tensor([front + row for row in rows]), 0)
            return found

        return hook

    with ExitStack() as stack:
        hooked = 0
        for module_name, module in model.model.diffusion_model.named_modules():
            for pattern, parts in VALUES[name]:
                if re.search(pattern, module_name):
                    handle = module.register_forward_hook(zeroing(parts))
                    stack.callback(handle.remove)
                    hooked += 1
        assert hooked
        yield


def test_every_family_that_is_said_to_be_tested_is(comfy: Any) -> None:
    said = {name for name, family in families().items() if family.verdict(WORDS).state == TESTED}
    assert said == {*VALUES, "demo"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in RELATIVES else []) for n in VALUES])
def test_a_muted_word_gives_nothing_and_others_give_what_they_gave(comfy: Any, name: str) -> None:
    plain_model, plain_clip = tiny(name)
    plain, other = (draw(name, plain_model, plain_clip, prompt) for prompt in (None, OTHER))
    muted = draw(name, *reweighted(name))
    assert float((muted - plain).norm() / plain.norm()) > 1e-4
    with valueless(name):
        expected = draw(name, plain_model, plain_clip)
    assert torch.allclose(muted, expected, atol=1e-5 * float(plain.abs().max()))
    assert torch.equal(draw(name, *reweighted(name, f"{WORD}: 1")), plain)
    assert torch.equal(draw(name, *reweighted(name), OTHER), other)
    assert torch.equal(draw(name, plain_model, plain_clip), plain)
    half = draw(name, *reweighted(name, f"{WORD}: 0.5"))
    assert not torch.allclose(half, muted, atol=1e-6) and not torch.allclose(half, plain, atol=1e-6)


def test_a_word_is_muted_in_every_step_where_the_text_looks_at_itself_too(comfy: Any) -> None:
    """Kandinsky's own blocks for text look at as many tokens; the host names none of them."""
    plain = draw("kandinsky5", *tiny("kandinsky5"), steps=3)
    muted = draw("kandinsky5", *reweighted("kandinsky5"), steps=3)
    with valueless("kandinsky5"):
        expected = draw("kandinsky5", *tiny("kandinsky5"), steps=3)
    assert not torch.allclose(muted, plain, atol=1e-4)
    assert torch.allclose(muted, expected, atol=1e-5 * float(plain.abs().max()))


@pytest.mark.parametrize("name", ["cogvideox", "hunyuan_video", "mochi", "wan"])
def test_a_word_is_muted_in_every_frame_of_a_video(comfy: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    plan = tiny_models.PLANS[name]
    monkeypatch.setitem(tiny_models.PLANS, name, replace(plan, latent=(plan.latent[0], 3, *plan.latent[2:])))
    plain, muted = draw(name, *tiny(name)), draw(name, *reweighted(name))
    with valueless(name):
        expected = draw(name, *tiny(name))
    assert float((muted - plain).norm() / plain.norm()) > 1e-4
    assert torch.allclose(muted, expected, atol=1e-5 * float(plain.abs().max()))


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux", "z_image", "qwen_image", "wan"])
def test_the_negatives_rows_keep_their_bits(comfy: Any, name: str) -> None:
    def first(model: Any, clip: Any) -> list[Tensor]:
        seen: list[list[Tensor]] = []
        watched = model.clone()
        watched.set_model_sampler_pre_cfg_function(lambda given: seen.append(given["conds_out"]) or given["conds_out"])
        draw(name, watched, clip, cfg=3.0)
        return seen[0]

    (said, unsaid), (changed, left) = first(*tiny(name)), first(*reweighted(name))
    assert torch.equal(unsaid, left) and not torch.allclose(said, changed, atol=1e-6)


@pytest.mark.parametrize("name", ["flux", "sd3", "z_image", "wan"])
def test_a_renormalised_zero_leaves_the_token_out(comfy: Any, name: str) -> None:
    """The same attention without the word's keys and values."""
    from lethe.nodes.host.conditioning import phrase_rows

    model, clip = tiny(name)
    rows = {row for place in phrase_rows(clip, families()[name], PROMPT, WORD) for row in place}
    tokens = clip.encode_from_tokens(clip.tokenize(PROMPT)).shape[1]
    looked_at = {"wan": tokens, "z_image": tokens + -tokens % 32 + 32}.get(name, tokens + 16)

    def without(func: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        many = k.shape[-2]
        if many != looked_at:
            return func(q, k, v, *args, **kwargs)
        keep = torch.tensor([i for i in range(many) if i not in rows])
        axis = 2 if kwargs.get("skip_reshape") else 1
        return func(q, k.index_select(k.ndim - 2, keep), v.index_select(axis, keep), *args, **kwargs)

    expected = model.clone()
    expected.model_options["transformer_options"]["optimized_attention_override"] = without
    found = draw(name, *reweighted(name, mode="renormalise"))
    plain = draw(name, model, clip)
    assert torch.allclose(found, draw(name, expected, clip), atol=1e-5 * float(plain.abs().max()))
    assert not torch.allclose(found, plain, atol=1e-4)
    assert torch.allclose(draw(name, *reweighted(name, f"{WORD}: 1", mode="renormalise")), plain, atol=1e-4)


@pytest.mark.parametrize("name", ["flux", "joyimage", "z_image", "wan"])
def test_a_region_confines_a_word(comfy: Any, name: str) -> None:
    plain, muted = draw(name, *tiny(name)), draw(name, *reweighted(name))
    left = torch.zeros(1, 64, 64)
    left[..., :32] = 1
    nowhere, halved, whole = (
        draw(name, *reweighted(name, region=region)) for region in (torch.zeros(1, 64, 64), left, torch.ones(1, 64, 64))
    )
    assert torch.allclose(nowhere, plain, atol=1e-5)
    assert not torch.allclose(halved, plain, atol=1e-5) and not torch.allclose(halved, whole, atol=1e-5)
    # Tokens among themselves are no region; what they give to each other matters where another block follows.
    assert torch.allclose(whole, muted, atol=1e-5) == (name != "flux")


def test_what_stands_behind_the_prompt_has_a_weight_of_its_own(comfy: Any) -> None:
    for name in ("sdxl", "z_image", "flux"):
        muted, both = (draw(name, *reweighted(name, end_weight=weight)) for weight in (1.0, 0.2))
        assert not torch.allclose(muted, both, atol=1e-5)
        (reading,) = _readings(name, end_weight=0.2)
        assert reading.unique().tolist() == pytest.approx([0.0, 0.2, 1.0])


def _readings(name: str, **given: Any) -> list[Tensor]:
    """What is read of the prompt's tokens."""
    from lethe.nodes.host.sampling import READINGS, encode_prompt

    _, clip = reweighted(name, **given)
    with torch.inference_mode():
        return [reading for own in encode_prompt(clip, PROMPT)[0][1][READINGS].values() for reading in own]


def test_a_word_has_a_place_in_every_part_of_the_features(comfy: Any) -> None:
    (both,), (spans,) = _readings("sdxl"), _readings("sd3")
    assert both.nonzero().numel() == 76 and int((both == 0).nonzero()) == 5
    rows = (spans == 0).nonzero()[:, 0].tolist()
    assert rows[0] == 5 and len(rows) == 2 and rows[1] > 77
    long = ", ".join(["a photo of a mat and a house"] * 20) + ", a cat"
    from lethe.nodes.host.sampling import READINGS, encode_prompt

    clip = reweighted("sdxl")[1]
    with torch.inference_mode():
        states, extras = encode_prompt(clip, long)[0]
        (reading,) = next(iter(extras[READINGS].values()))
    assert len(reading) == states.shape[1] > 77
    assert int((reading == 0).nonzero()) > 77


def test_what_cannot_be_reached_is_refused(comfy: Any) -> None:
    for name, family in families().items():
        if family.verdict(WORDS).state == NO:
            with pytest.raises(FamilyError, match=re.escape(family.verdict(WORDS).why)):
                reweighted(name)
    with pytest.raises(FamilyError, match="no UNet"):
        reweighted("flux", blocks="middle")


def test_attention_that_cannot_be_told_from_another_is_refused(comfy: Any) -> None:
    """Wan's prompts have 512 tokens; so many places has a picture of 32 by 64 latents."""
    import comfy.sample

    model, clip = reweighted("wan")
    with torch.inference_mode():
        given = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
        noise = torch.randn(1, 16, 1, 32, 64)
        with pytest.raises(GuardError, match="512"):
            comfy.sample.sample(
                model, noise, 1, 1.0, "euler", "normal", given, given, torch.zeros_like(noise), disable_pbar=True
            )
