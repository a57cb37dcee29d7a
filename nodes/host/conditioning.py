"""A CLIP as a text encoder for methods: prompts in, features and token positions out."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...erasers.errors import ConceptError
from ...erasers.provenance import fingerprint
from ...erasers.sites import Family
from ...erasers.task import Encode, EncodedPrompt, remembering
from .runtime import each

_SAMPLED = ("token_embedding.weight", "final_layer_norm.weight")
_BATCH = 32


def text_encoder(clip: Any, family: Family) -> Encode:
    """An encoder that runs prompts through `clip` in batches, with prompt weights switched off.

    Raises (when called):
        ConceptError: a prompt is longer than one chunk, or the CLIP's features do not fit the family.
    """

    def encode(prompts: list[str]) -> list[EncodedPrompt]:
        size = 1 if family.pooled_stream else _BATCH
        batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        # A bar of its own is for work that takes a while; one batch belongs to whatever asks for it.
        shown = each(batches, len(batches)) if len(batches) > 1 else batches
        return [prompt for batch in shown for prompt in _encode(clip, batch, family)]

    return remembering(encode)


def encoder_fingerprint(clip: Any) -> str:
    """A short hash of the text encoder's own weights."""
    weights = clip.patcher.model_state_dict()
    return fingerprint((name, value[:64]) for name, value in weights.items() if name.endswith(_SAMPLED))


def token_ids(clip: Any, prompt: str) -> tuple[int, ...]:
    """Token ids of a prompt's only chunk, padding included, by the first tokenizer.

    Raises:
        ConceptError: the prompt is longer than one chunk.
    """
    return _ids(next(iter(_tokens(clip, prompt).values()))[0])


def end_token(clip: Any) -> int:
    """Id of the first tokenizer's end token."""
    key = next(iter(clip.tokenize("")))
    tokenizer = getattr(clip.tokenizer, f"clip_{key}", None) or getattr(clip.tokenizer, key)
    return tokenizer.end_token


def _encode(clip: Any, prompts: list[str], family: Family) -> list[EncodedPrompt]:
    """The host joins the chunks of one call end to end; each is encoded by itself, so they come apart again."""
    tokens = [_tokens(clip, prompt) for prompt in prompts]
    joined = {key: [chunk for entry in tokens for chunk in entry[key]] for key in tokens[0]}
    states, pooled = clip.encode_from_tokens(joined, return_pooled=True)
    states = states.float().cpu()
    if states.shape[-1] != family.width:
        raise ConceptError(
            f"This CLIP gives features of width {states.shape[-1]}, the model ({family.title}) reads {family.width}.",
            "Connect the CLIP that belongs to the model.",
        )
    rows = states.reshape(len(prompts), -1, family.width)
    beside: Tensor | None = pooled[0].float().cpu().clone() if family.pooled_stream and pooled is not None else None
    end, found = end_token(clip), []
    for prompt, entry, state in zip(prompts, tokens, rows, strict=True):
        ids = _ids(next(iter(entry.values()))[0])
        last = (ids.index(end, 1) if end in ids[1:] else len(ids)) - 1
        found.append(EncodedPrompt(prompt, state.clone(), last, ids, beside))
    return found


def _tokens(clip: Any, prompt: str) -> dict[str, Any]:
    tokens = clip.tokenize(prompt, disable_weights=True)
    if any(len(chunks) != 1 for chunks in tokens.values()):
        raise ConceptError(f"'{prompt[:60]}...' is longer than one text chunk.", "Describe the concept in fewer words.")
    return tokens


def _ids(chunk: list[Any]) -> tuple[int, ...]:
    """Ids of a chunk's tokens; -1 where a textual inversion puts a vector in place of a token."""
    return tuple(token[0] if isinstance(token[0], int) else -1 for token in chunk)
