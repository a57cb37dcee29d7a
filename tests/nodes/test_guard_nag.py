"""NAG in the real host: whose rows it changes, and what it goes with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import GuardError

PROMPT, OTHER = "a large red ball, flat style, on paper", "a large red tree, flat style, on paper"


def nag(demo: Any, name: str = "ball", gate: float = 0.0, **settings: float) -> Any:
    """MODEL and CLIP behind the guard."""
    from lethe.nodes.guard import LetheGuard

    concepts = ConceptList(lists=("demo-world",)).with_concept(Concept(name))
    with torch.inference_mode():
        return LetheGuard.execute(demo[0], demo[1], concepts, gate, guard={"guard": "nag", **settings}).result[:2]


def muted(demo: Any, mode: str) -> Any:
    """MODEL and CLIP with a word turned down."""
    from lethe.nodes.attention import LetheAttention

    settings: dict[str, Any] = {"end_weight": 0.5, "start": 0.0, "end": 1.0, "blocks": "all", "mode": mode}
    with torch.inference_mode():
        return LetheAttention.execute(demo[0], demo[1], "red: 0.3", **settings).result


def sample(model: Any, clip: Any, prompts: tuple[str, ...] = (PROMPT,), cfg: float = 4.0) -> Any:
    from lethe.nodes.host.sampling import encode_prompt, prompts_at_once

    import nodes

    with torch.inference_mode():
        positive, negative = prompts_at_once([encode_prompt(clip, p) for p in prompts]), encode_prompt(clip, "")
        latent = nodes.EmptyLatentImage().generate(128, 128, len(prompts))[0]
        return nodes.KSampler().sample(model, 3, 4, cfg, "ddim", "normal", positive, negative, latent)[0]["samples"]


def test_a_prompt_that_is_the_concept_is_pushed_nowhere(demo: Any) -> None:
    """Z- is Z+ then: that the concept's own keys and values come out of the layer."""
    drawn = sample(*nag(demo, PROMPT, share=1.0))
    assert torch.allclose(drawn, sample(*demo[:2]), atol=1e-3)
    assert not torch.allclose(sample(*nag(demo, OTHER, share=1.0)), drawn, atol=1e-1)


@pytest.mark.parametrize("nothing", [{"scale": 0.0}, {"share": 0.0}])
def test_without_strength_nothing_changes_bit_for_bit(demo: Any, nothing: dict[str, float]) -> None:
    from lethe.nodes.host.guarding import installed_guards

    model, clip = nag(demo, **nothing)
    assert torch.equal(sample(model, clip), sample(*demo[:2]))
    assert installed_guards(model)[0].plan.attention is None


def test_the_negatives_rows_are_left_alone(demo: Any) -> None:
    def unsaid(model: Any, clip: Any) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []
        watched = model.clone()
        watched.set_model_sampler_pre_cfg_function(lambda given: seen.append(given["conds_out"]) or given["conds_out"])
        sample(watched, clip)
        return [said for pair in seen[:1] for said in pair]

    (said, plain_unsaid), (pushed, pushed_unsaid) = unsaid(*demo[:2]), unsaid(*nag(demo))
    assert torch.allclose(plain_unsaid, pushed_unsaid, atol=1e-4)
    assert not torch.allclose(said, pushed, atol=1e-2)


def test_in_a_batch_only_the_prompts_that_pass_the_gate_are_pushed(demo: Any) -> None:
    plain, pushed = sample(*demo[:2], (PROMPT, OTHER)), sample(*nag(demo, gate=0.45), (PROMPT, OTHER))
    assert torch.allclose(plain[1], pushed[1], atol=1e-3)
    assert not torch.allclose(plain[0], pushed[0], atol=1e-1)


@pytest.mark.parametrize("mode", ["scale", "renormalise"])
def test_reweighted_words_go_with_it_in_any_order(demo: Any, mode: str) -> None:
    both = sample(*nag(muted(demo, mode)))
    assert torch.allclose(both, sample(*muted(nag(demo), mode)), atol=1e-3)
    assert not torch.allclose(both, sample(*nag(demo)), atol=1e-2)
    # The weights are those of the prompt's words: a prompt that is the concept is then pushed as well.
    itself = sample(*nag(muted(demo, mode), PROMPT, share=1.0))
    assert not torch.allclose(itself, sample(*muted(demo, mode)), atol=1e-2)


def test_two_of_them_act_one_after_the_other(demo: Any) -> None:
    both = sample(*nag(nag(demo), "red"))
    assert not torch.allclose(both, sample(*nag(demo)), atol=1e-2)
    assert not torch.allclose(both, sample(*nag(demo, "red")), atol=1e-2)
    # The second finds its own features behind those of the first, which here push nothing.
    assert torch.allclose(sample(*nag(nag(demo, PROMPT, share=1.0))), sample(*nag(demo)), atol=1e-2)


def test_other_nodes_around_attention_see_the_prompts_tokens_alone(demo: Any) -> None:
    seen: set[int] = set()

    def around(func: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        seen.add(k.shape[1])
        return func(q, k, v, *args, **kwargs)

    def plain(model: Any, clip: Any) -> None:
        watched = model.clone()
        watched.model_options["transformer_options"]["optimized_attention_override"] = around
        sample(watched, clip)

    plain(*demo[:2])
    own = set(seen)
    plain(*nag(demo))
    assert seen == own


def test_a_node_that_replaces_cross_attention_is_refused(demo: Any) -> None:
    model, clip = nag(demo)
    taken = model.clone()
    taken.set_model_attn2_replace(lambda q, k, v, extra: q, "middle", 0)
    with pytest.raises(GuardError, match="replaces"):
        sample(taken, clip)
