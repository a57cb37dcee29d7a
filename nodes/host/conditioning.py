"""A CLIP as a text encoder for methods: prompts in, features and token positions out."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...erasers.errors import ConceptError
from ...erasers.provenance import fingerprint
from ...erasers.sites import Family
from ...erasers.task import Encode, EncodedPrompt
from .runtime import each

_SAMPLED = ("token_embedding.weight", "final_layer_norm.weight")


def text_encoder(clip: Any, family: Family) -> Encode:
    """An encoder that runs prompts through `clip`, each once, with prompt weights switched off.

    Raises (when called):
        ConceptError: a prompt is longer than one chunk, or the CLIP's features do not fit the family.
    """
    known: dict[str, EncodedPrompt] = {}

    def encode(prompts: list[str]) -> list[EncodedPrompt]:
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        for prompt in each(missing, len(missing)):
            known[prompt] = _encode(clip, prompt, family)
        return [known[prompt] for prompt in prompts]

    return encode


def encoder_fingerprint(clip: Any) -> str:
    """A short hash of the text encoder's own weights."""
    weights = clip.patcher.model_state_dict()
    return fingerprint((name, value[:64]) for name, value in weights.items() if name.endswith(_SAMPLED))


def _encode(clip: Any, prompt: str, family: Family) -> EncodedPrompt:
    tokens = clip.tokenize(prompt, disable_weights=True)
    key, chunks = next(iter(tokens.items()))
    if len(chunks) != 1:
        raise ConceptError(f"'{prompt[:60]}...' is longer than one text chunk.", "Describe the concept in fewer words.")
    states: Tensor = clip.encode_from_tokens(tokens)[0].float().cpu()
    if states.shape[1] != family.width:
        raise ConceptError(
            f"This CLIP gives features of width {states.shape[1]}, the model ({family.title}) reads {family.width}.",
            "Connect the CLIP that belongs to the model.",
        )
    return EncodedPrompt(prompt, states.clone(), _last_content(clip, key, [token[0] for token in chunks[0]]))


def _last_content(clip: Any, key: str, ids: list[Any]) -> int:
    """Position of the last content token: the one before the first end token."""
    tokenizer = getattr(clip.tokenizer, f"clip_{key}", None) or getattr(clip.tokenizer, key)
    ends = [i for i, token in enumerate(ids) if isinstance(token, int) and token == tokenizer.end_token and i > 0]
    return (ends[0] if ends else len(ids)) - 1
