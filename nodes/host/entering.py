"""Text features on their way into a model: those of its sites, pooled ones, and those that enter beside both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...erasers.sites import Family

Edit = Callable[[Tensor, str], Tensor]
"""Features `[n, ..., d]` of a stream, by its name, to those that enter; the very same where nothing edits them."""


def edit_entering(
    family: Family, tokens: Tensor | None, rest: dict[str, Any], edit: Edit
) -> tuple[Tensor | None, dict[str, Any]]:
    """Pass all text features of one pass of a model through an edit; nothing that is given is changed.

    Args:
        tokens: `[n, tokens, d]`, what the model's sites read.
        rest: the model's other inputs, by the host's names.
    """
    if tokens is not None:
        tokens = edit(tokens, family.stream)
    if family.pooled_stream and rest.get("y") is not None:
        rest = {**rest, "y": edit(rest["y"], family.pooled_stream)}
    return tokens, {**rest, **edit_further(family, rest, edit, "taken")}


def edit_further(family: Family, given: dict[str, Any], edit: Edit, names: str) -> dict[str, Tensor]:
    """What an edit changes of a family's further features, by name.

    Args:
        given: features by the names that `names` says: "given" or "taken" of `Further`.
    """
    found: dict[str, Tensor] = {}
    for own in family.further:
        name = getattr(own, names)
        states = found.get(name, given.get(name))
        if states is None or (own.layer is not None and own.layer >= states.shape[1]):
            continue
        before = states if own.layer is None else states[:, own.layer]
        after = edit(before, own.stream)
        if after is before:
            continue
        if own.layer is None:
            found[name] = after
            continue
        if name not in found:
            found[name] = states.clone()
        found[name][:, own.layer] = after
    return found
