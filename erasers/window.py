"""When something acts while a picture is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .errors import SettingError
from .spec import Parameter, Value


@dataclass(frozen=True)
class Window:
    """The part of sampling that something acts in, as shares: 0 is all noise, 1 the finished picture."""

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise SettingError(
                f"The guard would act from {self.start:g} to {self.end:g} of sampling, which is never.",
                "Both are shares from 0 to 1; set the start below the end.",
            )

    def holds(self, percent: float) -> bool:
        """Whether a moment is in the window; its end is not, but for the end of sampling."""
        return self.start <= percent and (percent < self.end or self.end == 1)


def window_settings(start: float = 0.0, published: str = "0 keeps a concept out") -> tuple[Parameter, Parameter]:
    """When a guard acts."""
    return (
        Parameter(
            "start",
            start,
            f"Share of sampling at which it begins to act, 0 to 0.99. Start at {start:g}; {published}.",
            maximum=0.99,
        ),
        Parameter("end", 1.0, "Share of sampling at which it ends, 0.01 to 1. Start at 1.", minimum=0.01),
    )


def window_of(settings: Mapping[str, Value]) -> Window:
    """The window that `start` and `end` describe."""
    return Window(float(settings["start"]), float(settings["end"]))
