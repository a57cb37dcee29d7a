"""Features that were read, in place of a prompt's or added to them."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.errors import GuardError
from lethe.erasers.read_features import Added, Swapped


@pytest.mark.parametrize("part", [Swapped(), Added()])
def test_what_was_read_is_put_in_repeated_as_the_host_does(part: Swapped | Added) -> None:
    reading, states = torch.randn(4, 3), torch.randn(4, 3).half().repeat(2, 1)
    assert not part.holds(None, 0.5) and part.holds(reading, 0.5)
    own = torch.cat([reading, reading]).half()
    assert torch.equal(part.edit(states, reading), own if isinstance(part, Swapped) else states + own)
    for other in (torch.zeros(6, 3), torch.randn(8, 3)):
        with pytest.raises(GuardError, match="not it repeated"):
            part.edit(other, reading)
