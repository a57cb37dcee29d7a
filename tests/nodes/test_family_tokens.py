"""Text features of every family through the host's own tokenizers and templates: where a prompt's own tokens stand."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import tiny_models
import torch
from lethe.erasers.algebra.tokens import select_pair, select_rows
from lethe.erasers.errors import ConceptError
from lethe.erasers.registry import families

NAMES = sorted(name for name in tiny_models.PLANS if name != "flux2_klein_9b")
"""Klein 9B differs from Klein 4B in its sizes alone."""
LIGHT = [name for name in NAMES if name not in ("flux2_klein_4b", "ideogram4")]
"""Those that encode fast; the others' tokenizer is Z-Image's."""
ANEW = ("boogu",)
"""Those whose host puts the empty prompt into another template."""
PHRASE = "Van Gogh"
LATIN_ONLY = {"flux", "chroma", "cogvideox", "pixart", "ltxv", "cosmos1", "cosmos2", "hidream", "mochi"}
"""T5's vocabulary has no Chinese."""


@pytest.fixture(scope="module")
def encoders(comfy: Any) -> Callable[[str], tuple[Any, Any]]:
    """CLIP of a family and the encoder of methods on it, each made once."""
    from lethe.nodes.host.conditioning import text_encoder

    @cache
    def make(name: str) -> tuple[Any, Any]:
        clip = tiny_models.tiny_clip(name)
        return clip, text_encoder(clip, families()[name])

    return make


@pytest.fixture
def spaced(encoders: Any, name: str) -> None:
    """Skips where a tokenizer of the host loses the blanks between words, as its Llama does with transformers 5."""
    clip, _ = encoders(name)
    for stream in _streams(name):
        tokenizer = getattr(clip.tokenizer, stream, None)
        if tokenizer is not None and stream == "llama":
            one, other = (tokenizer.tokenizer(text)["input_ids"] for text in ("a tree", "atree"))
            if one == other:
                pytest.skip("this version of transformers reads the host's Llama tokenizer without its blanks")


def _parts(prompt: Any) -> Any:
    return prompt.parts or (prompt,)


def _streams(name: str) -> list[str]:
    """The stream whose tokens are told, of each part of a family's features."""
    return [part.split("+")[-1] for part in families()[name].stream.split("|")]


def _spelled(clip: Any, stream: str, prompt: Any) -> str:
    """What the tokens of a prompt say, blanks left out."""
    tokenizer = getattr(clip.tokenizer, stream.replace("pile_t5xl", "clip_pile_t5xl"), None) or getattr(
        clip.tokenizer, f"clip_{stream}"
    )
    text = tokenizer.decode(list(prompt.ids[prompt.start : prompt.last + 1]))
    return "".join(text.lower().split())


@pytest.mark.parametrize("name", NAMES)
def test_own_tokens_are_found_between_all_others(encoders: Any, name: str) -> None:
    clip, encode = encoders(name)
    prompt = encode(["a photo of Van Gogh, (oil:1.4)"])[0]
    assert prompt.states.shape == (len(prompt.ids), families()[name].width)
    for part, stream in zip(_parts(prompt), _streams(name), strict=True):
        assert len(part.states) == len(part.ids)
        assert _spelled(clip, stream, part).replace("\u2047", "") == "aphotoofvangogh,(oil:1.4)"


@pytest.mark.parametrize("name", NAMES)
def test_the_empty_prompt_has_no_own_tokens(encoders: Any, name: str) -> None:
    _, encode = encoders(name)
    empty, one = encode(["", "cat"])
    for part, other in zip(_parts(empty), _parts(one), strict=True):
        assert part.start == part.last + 1
        place = max(other.start - 1, 0)
        if name in ANEW:
            assert part.last != place and part.ids[part.last] == other.ids[place]
        else:
            assert part.last == place
        assert other.start <= other.last
    with pytest.raises(ConceptError, match="no token"):
        select_pair("last", empty, one)


@pytest.mark.parametrize("name", LIGHT)
def test_rows_are_what_the_host_gives(encoders: Any, name: str) -> None:
    clip, encode = encoders(name)
    given = clip.encode_from_tokens(clip.tokenize("a photo of a cat")).float()[0]
    own = encode(["a dog", "a photo of a cat", "tree"])[1].states
    assert torch.equal(given[: len(own)], own)
    assert len(own) <= len(given)


@pytest.mark.parametrize("name", NAMES)
def test_facts_of_the_tokenizers_are_true(encoders: Any, name: str) -> None:
    clip, encode = encoders(name)
    one = encode(["cat"])[0]
    for part, stream in zip(_parts(one), _streams(name), strict=True):
        encoder = next(own for own in families()[name].encoders if own.stream == stream)
        key = stream.removeprefix("clip_")
        tokens, raw = clip.tokenize("cat")[key][0], clip.tokenize("")[key][0]
        assert len(raw) >= encoder.least
        before, after = part.start, len(part.ids) - part.last - 1
        if not encoder.wrapped:
            assert before == encoder.start
            assert (after > 0) == (encoder.end or encoder.least > 1)
        else:
            assert before + after + (len(tokens) - len(part.ids)) > 2
        if not encoder.padding_read:
            assert len(part.ids) < encoder.least


@pytest.mark.usefixtures("spaced")
@pytest.mark.parametrize("name", LIGHT)
def test_causal_encoders_do_not_look_ahead(encoders: Any, name: str) -> None:
    _, encode = encoders(name)
    for one, other, stream in zip(*(_parts(p) for p in encode(["cat dog", "cat tree"])), _streams(name), strict=True):
        encoder = next(own for own in families()[name].encoders if own.stream == stream)
        assert torch.allclose(one.states[one.start], other.states[other.start], atol=1e-5) == encoder.causal


@pytest.mark.usefixtures("spaced")
@pytest.mark.parametrize("name", LIGHT)
def test_phrases_are_found_through_weights_and_templates(encoders: Any, name: str) -> None:
    from lethe.nodes.host.conditioning import phrase_rows

    clip, _ = encoders(name)
    family, parts = families()[name], len(_streams(name))
    plain = phrase_rows(clip, family, f"a photo of {PHRASE}, oil", PHRASE)
    weighted = phrase_rows(clip, family, f"a photo of ({PHRASE}:1.4), oil", PHRASE)
    assert len(plain) == len(weighted) == parts
    assert [len(own) for own in plain] == [len(own) for own in weighted]
    assert len(phrase_rows(clip, family, "cat on a mat, a cat", "cat")) == 2 * parts
    assert not phrase_rows(clip, family, "a tree", "cat")


@pytest.mark.usefixtures("spaced")
@pytest.mark.parametrize("name", LIGHT)
def test_phrases_of_other_scripts(encoders: Any, name: str) -> None:
    from lethe.nodes.host.conditioning import phrase_rows

    clip, encode = encoders(name)
    prompt = encode(["\u732b"])[0]
    if name in LATIN_ONLY:
        with pytest.raises(ConceptError, match="no token"):
            select_pair("last", prompt, prompt)
        return
    assert prompt.last >= prompt.start
    places = phrase_rows(clip, families()[name], "\u4e00\u53ea\u732b\u5728\u8349\u5730\u4e0a", "\u732b")
    assert places
    assert all(0 < len(place) <= 6 for place in places)


@pytest.mark.parametrize("name", ["sd3", "flux", "z_image"])
def test_rows_are_chosen_in_every_part(encoders: Any, name: str) -> None:
    _, encode = encoders(name)
    source, target = encode(["a photo of a cat", "dog"])
    erase, replace = select_pair("last", source, target)
    parts = len(_parts(source))
    assert erase.shape == replace.shape == (parts, families()[name].width)
    assert len(select_rows("last", [source, target])) == 2 * parts
    assert torch.equal(erase[0], _parts(source)[0].states[_parts(source)[0].last])
    tail, other = select_pair("tail", source, target)
    assert tail.shape == other.shape
    assert len(tail) > parts


def test_encoders_with_other_weights_have_other_fingerprints(comfy: Any) -> None:
    from lethe.nodes.host.conditioning import encoder_fingerprint

    for name in ("chroma", "z_image", "auraflow"):
        one, other = (encoder_fingerprint(tiny_models.tiny_clip(name, seed)) for seed in (1, 2))
        assert one != other
