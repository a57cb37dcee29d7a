"""Which token positions stand for a concept, and how source and replacement are lined up.

The rules carry the names of the literature: `last` (last content token), `tail` (from it to the end
of the padding, aligned at the last content tokens) and `all` (position by position).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConceptError
from ..task import EncodedPrompt

RULES = ("last", "tail", "all")


def select_pair(rule: str, source: EncodedPrompt, target: EncodedPrompt) -> tuple[Tensor, Tensor]:
    """Rows to erase and the rows that replace them.

    Args:
        rule: one of `RULES`.
        source: the concept's prompt; it must have a content token.
        target: the replacement's; a prompt without content counts as ending at its start token,
            as in the published programs, so that the concept's word becomes the start token and
            what follows it becomes the empty prompt's end and padding.

    Returns:
        Two `[n, d]` tensors.

    Raises:
        ConceptError: the source holds no content token.
    """
    if source.last < 1:
        raise ConceptError(
            f"'{source.text}' has no token that the text encoder knows.", "Name the concept in words of its language."
        )
    if rule == "last":
        return source.states[source.last :][:1], target.states[target.last :][:1]
    if rule == "all":
        return source.states, target.states
    length = len(source.states) - max(source.last, target.last)
    return source.states[source.last :][:length], target.states[target.last :][:length]


def select_rows(rule: str, prompts: list[EncodedPrompt]) -> Tensor:
    """Rows to preserve, `[m, d]`: the last content token of each prompt, or all its positions."""
    rows = [prompt.states[prompt.last :][:1] if rule == "last" else prompt.states for prompt in prompts]
    return torch.cat(rows)
