"""Heat maps of words in the real host: they show where things are drawn, and looking changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import FamilyError, SettingError

PROMPT = "a medium red ball, flat style, on paper"
PAIR = "a medium red ball and a medium blue box, flat style, on paper"


def look(demo: Any, words: str, prompt: str = PROMPT, vae: Any = None, **given: Any) -> Any:
    """Maps, pictures and shares."""
    from lethe.nodes.look import LetheLook

    sampling: dict[str, Any] = {
        "seed": 2, "steps": 10, "cfg": 4.0, "sampler": "ddim", "scheduler": "normal", "width": 128, "height": 128,
        "negative": "", "count": 1,
    }  # fmt: skip
    with torch.inference_mode():
        return LetheLook.execute(demo[0], demo[1], prompt, words, vae=vae, **{**sampling, **given}).result


def drawn(demo: Any, prompt: str = PROMPT, count: int = 1) -> torch.Tensor:
    """The picture without looking."""
    from lethe.nodes.host.sampling import Sampling, draw, encode_prompt

    with torch.inference_mode():
        positive, negative = (encode_prompt(demo[1], text) for text in (prompt, ""))
        return draw(demo[0], positive, negative, demo[2], Sampling(2, 10, 4.0, "ddim", "normal", 128, 128), count)


def coloured(picture: torch.Tensor, channel: int) -> torch.Tensor:
    """Where a picture is red (0) or blue (2), `[h, w]` bool."""
    others = [c for c in range(3) if c != channel]
    return picture[..., channel] - picture[..., others].amax(-1) > 0.25


def test_the_map_of_a_word_is_brightest_where_its_object_is_drawn(demo: Any) -> None:
    over, pictures, _ = look(demo, "ball", PAIR, demo[2], seed=4)
    ball, red, blue = look(demo, "ball\nred\nblue", PAIR, seed=4)[0].mean(-1)
    left, right = coloured(pictures[0], 0), coloured(pictures[0], 2)
    assert left.sum() > 1000 and right.sum() > 1000, "the picture has a red ball and a blue box"
    for heat, where, other in ((ball, left, right), (red, left, right), (blue, right, left)):
        assert heat[where].mean() > 1.5 * heat[~where].mean()
        assert heat[where].mean() > 1.5 * heat[other].mean()
    assert over.shape == (1, 128, 128, 3) and over[0][left].mean() > over[0][right].mean()


def test_the_picture_is_the_same_as_without_looking(demo: Any) -> None:
    maps, pictures, _ = look(demo, "ball\nred\non paper", vae=demo[2], count=2)
    assert torch.equal(pictures, drawn(demo, count=2))
    assert len(maps) == 6
    assert torch.equal(look(demo, "ball\nred\non paper", count=2)[0][3], look(demo, "ball", count=2)[0][1])


def test_shares_are_those_of_the_whole_attention(demo: Any) -> None:
    """The tokens' shares add up to 1, whatever words they are of."""
    from lethe.nodes.host.looking import Looks, watched
    from lethe.nodes.host.sampling import Sampling, draw_latents, encode_prompt

    looks = Looks([[place] for place in range(77)], 77)
    with torch.inference_mode():
        positive, negative = (encode_prompt(demo[1], text) for text in (PROMPT, ""))
        how = Sampling(2, 3, 4.0, "ddim", "normal", 128, 128)
        draw_latents(watched(demo[0], looks), positive, negative, how)
    assert torch.allclose(looks.mean(32, 32).sum(1), torch.ones(1, 32, 32), atol=1e-4)


def test_what_repeats_a_prompt_does_not_change_its_shares(demo: Any) -> None:
    """Beside a negative of two chunks the host repeats the prompt; without guidance nothing else differs."""
    longer = ", ".join([PROMPT] * 12)
    (alone, _), (beside, _) = (
        [float(line.split()[-1].rstrip("%")) for line in look(demo, "ball\nred", negative=text, steps=1)[2].split("\n")]
        for text in ("", longer)
    )
    assert alone == beside and alone > 1
    assert look(demo, "ball", longer, steps=1)[2] != look(demo, "ball", steps=1)[2]


def test_the_negative_does_not_count(demo: Any) -> None:
    """The first step looks at the same noise with guidance and without, where there are no rows of the negative."""
    guided, alone = (look(demo, "ball\nred", negative="a blue box", steps=1, cfg=cfg)[0] for cfg in (4.0, 1.0))
    assert torch.allclose(guided, alone, atol=1e-3)


def test_guards_take_part_and_their_own_features_do_not_count(demo: Any) -> None:
    from lethe.nodes.attention import LetheAttention
    from lethe.nodes.guard import LetheGuard

    ball = ConceptList(lists=("demo-world",)).with_concept(Concept("ball"))
    settings: dict[str, Any] = {"end_weight": 1.0, "start": 0.0, "end": 1.0, "blocks": "all", "mode": "renormalise"}
    with torch.inference_mode():
        muted = LetheAttention.execute(demo[0], demo[1], "ball: 0", **settings).result
        pushed = LetheGuard.execute(demo[0], demo[1], ball, 0.0, guard={"guard": "nag", "scale": 1e-6}).result
        beside = LetheGuard.execute(demo[0], demo[1], ball, 0.0, guard={"guard": "negtome", "threshold": 1.0}).result
    assert look(muted, "ball")[2] == "ball: 0.0%"
    for guarded in (pushed, beside):
        assert torch.allclose(look(guarded, "ball")[0], look(demo, "ball")[0], atol=1e-2)


def test_without_a_vae_the_picture_is_blocked(demo: Any) -> None:
    from comfy_execution.graph_utils import ExecutionBlocker

    assert isinstance(look(demo, "ball")[1], ExecutionBlocker)


@pytest.mark.parametrize(("words", "problem"), [("tree", "tree"), ("ball\nred tree", "red tree"), ("", "no word")])
def test_words_that_are_not_in_the_prompt_are_refused(demo: Any, words: str, problem: str) -> None:
    with pytest.raises(SettingError, match=problem):
        look(demo, words)


def test_a_model_without_cross_attention_is_refused(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = demo[0].clone()
    monkeypatch.setattr(model, "model_state_dict", lambda *args: {"diffusion_model.double_blocks.0.weight": 0})
    with pytest.raises(FamilyError, match="cross-attention"):
        look((model, demo[1]), "ball")
