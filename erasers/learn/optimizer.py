"""Optimisers and the course of the learning rate, by the names of a schedule."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingError
from .plan import ADAM, ADAMW, ADAMW_8BIT, CONSTANT, RESTARTS, Schedule

_CYCLES = 3


def make_optimizer(leaves: Sequence[Tensor], schedule: Schedule) -> torch.optim.Optimizer:
    """The optimiser of a schedule.

    Raises:
        SettingError: it needs a package that is not there.
    """
    given: dict[str, Any] = {"lr": schedule.rate, "weight_decay": schedule.decay}
    if schedule.optimizer == ADAM:
        return torch.optim.Adam(leaves, betas=schedule.betas, **given)
    if schedule.optimizer == ADAMW:
        return torch.optim.AdamW(leaves, betas=schedule.betas, **given)
    if schedule.optimizer == ADAMW_8BIT:
        try:
            library = importlib.import_module("bitsandbytes")
        except ImportError as error:
            raise SettingError("AdamW with 8 bits needs bitsandbytes.", "Install it, or choose adamw.") from error
        return library.optim.AdamW8bit(leaves, betas=schedule.betas, **given)
    return torch.optim.SGD(leaves, **given)


def rate_at(step: int, schedule: Schedule) -> float:
    """The learning rate of a step, counted from 0."""
    if step < schedule.warmup:
        return schedule.rate * (step + 1) / schedule.warmup
    if schedule.course == CONSTANT:
        return schedule.rate
    done = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    if schedule.course == RESTARTS:
        done = done * _CYCLES % 1.0
    return schedule.rate * 0.5 * (1 + math.cos(math.pi * done))
