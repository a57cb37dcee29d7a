"""A concept's words that lose places to others in the host's cross-attention (erasers/rivals.py).

What the layer gives comes from the host's own attention, and from what other nodes put around it; only what is lost is
computed beside it, and taken off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...erasers.nudge import Words
from ...erasers.rivals import Rivals
from .acting import OVERRIDE, Sampling, behind, check_own_attention, feature_size, mask_of_row

Part = tuple[Any, Rivals]


def rival(options: dict[str, Any], run: Sampling, parts: Sequence[Part], key: str) -> None:
    """Let parts act in the sampling whose transformer options these are.

    Args:
        parts: guards with their parts, in the order they act.
        key: of the run among the options; attention without it is to other features than the prompt's.

    Raises:
        GuardError: another node puts its own computation in the place of cross-attention.
    """
    if not parts:
        return
    check_own_attention(options, parts[0][0].title)
    before = options.get(OVERRIDE)

    def override(
        func: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        said = behind(func, before)(q, k, v, heads, mask=mask, **kwargs)
        told = kwargs.get("transformer_options") or {}
        # As many keys as places is self-attention.
        if key not in told or q.shape[1] == k.shape[1]:
            return said
        for guard, part in parts:
            rows = _acting(run, guard, part, told, len(q))
            if not rows:
                continue
            size, left = feature_size(told, q.shape[1]), []
            for row, words in rows:
                lost = part.lost(q[row], k[row], v[row], heads, mask_of_row(mask, row, len(q)), words, size)
                left.append((said[row].float() - lost).to(said))
            at = torch.tensor([row for row, _ in rows], device=said.device)
            said = said.index_copy(0, at, torch.stack(left))
        return said

    options[OVERRIDE] = override


def _acting(run: Sampling, guard: Any, part: Rivals, told: Mapping[str, Any], count: int) -> list[tuple[int, Words]]:
    """Rows of a batch that a part acts on now, each with its prompt's words."""
    if not part.window.holds(run.moment(told)):
        return []
    each, found = count // len(told["uuids"]), list[tuple[int, Words]]()
    for chunk, uuid in enumerate(told["uuids"]):
        readings = run.read(guard, uuid)
        rows = [(chunk * each + i, readings[i % len(readings)]) for i in range(each if readings else 0)]
        found += [(row, reading.words) for row, reading in rows if reading is not None and reading.words]
    return found
