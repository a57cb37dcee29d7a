"""Which token positions stand for a concept, and how source and replacement are lined up.

The rules carry the names of the literature: `last` (last content token), `tail` (from it to the end
of the padding, aligned at the last content tokens), `all` (position by position) and `eot` (the first
end token, which sums a causal encoder's prompt up).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ConceptError
from ..task import Encode, EncodedPrompt

LAST, TAIL, ALL, EOT = "last", "tail", "all", "eot"
RULES = (LAST, TAIL, ALL, EOT)


def select_pair(rule: str, source: EncodedPrompt, target: EncodedPrompt) -> tuple[Tensor, Tensor]:
    """Rows to erase and the rows that replace them; of every encoder's part where several follow one another.

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
    if source.parts and target.parts:
        known = [(one, other) for one, other in zip(source.parts, target.parts, strict=True) if one.last >= one.start]
        pairs = [select_pair(rule, one, other) for one, other in known or [(source.parts[0], target.parts[0])]]
        return torch.cat([one for one, _ in pairs]), torch.cat([other for _, other in pairs])
    if source.last < source.start:
        raise ConceptError(
            f"'{source.text}' has no token that the text encoder knows.", "Name the concept in words of its language."
        )
    if rule == LAST:
        return source.states[source.last :][:1], target.states[target.last :][:1]
    if rule == EOT:
        if max(source.last, target.last) + 1 >= len(source.states):
            raise ConceptError("This text encoder closes a prompt with no token.", "Choose another rule for tokens.")
        return source.states[source.last + 1 :][:1], target.states[target.last + 1 :][:1]
    if rule == ALL:
        length = min(len(source.states), len(target.states))
        return source.states[:length], target.states[:length]
    length = min(len(source.states) - source.last, len(target.states) - target.last)
    return source.states[source.last :][:length], target.states[target.last :][:length]


def select_rows(rule: str, prompts: list[EncodedPrompt]) -> Tensor:
    """Rows to preserve, `[m, d]`: each prompt's last content token (`last`), first end token (`eot`), or all rows;
    of every encoder's part where several follow one another.
    """
    single = {LAST: 0, EOT: 1}
    if rule not in single:
        return torch.cat([prompt.states for prompt in prompts])
    parts = [part for prompt in prompts for part in prompt.parts or (prompt,)]
    return torch.cat([part.states[part.last + single[rule] :][:1] for part in parts])


def name_rows(encode: Encode, name: str, frames: Sequence[str]) -> Tensor:
    """The features of a name's own tokens, averaged over sentences that end with it, `[k, d]` float64.

    Raises:
        ConceptError: the text encoder reads nothing in the name.
    """
    bare, *prompts = encode([name, *(frame.format(name) for frame in frames)])
    count = bare.last - bare.start + 1
    if count < 1:
        raise ConceptError(f"'{name}' has no token that the text encoder knows.", "Name it in words of its language.")
    rows = [prompt.states[prompt.last - count + 1 : prompt.last + 1] for prompt in prompts]
    return torch.stack(rows).double().mean(0)
