"""What an attack may write a prompt with, so that the prompt as people type it is the one that was searched."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import FamilyError, SettingError
from ..model import TextTower


def typed_tokens(tower: TextTower) -> Tensor:
    """Ids of the tokens that are read back as themselves when their text is typed, `[m]` int64, ascending.

    Start, end and unknown have no text; pieces of words are read as other tokens; hosts read punctuation as commands.

    Raises:
        FamilyError: there are none.
    """
    special = {tower.ids("")[0], tower.end}
    count = len(tower.vocabulary())
    texts = ((number, tower.decode([number])) for number in range(count) if number not in special)
    found = [number for number, text in texts if text.isalnum() and tower.content(text) == [number]]
    if not found:
        raise FamilyError("No token of this text encoder can be typed.", "Use an attack that searches no prompts.")
    return torch.tensor(found)


def room(tower: TextTower, tokens: int, own: int = 0) -> int:
    """How many content tokens the tower takes.

    Raises:
        SettingError: `tokens` free ones, and at least `own` of the prompt's, do not fit.
    """
    found = len(tower.ids("")) - 2
    if tokens + own > found:
        raise SettingError(
            f"{tokens} tokens do not fit this model's text encoder.", f"Set tokens to {found - own} or fewer."
        )
    return found
