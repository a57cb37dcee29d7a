"""How a method describes itself: its parameters with defaults, ranges, units and meaning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import SettingError
from .sites import Family, Need

Value = bool | int | float | str


@dataclass(frozen=True)
class Parameter:
    """One setting.

    Attributes:
        name: id of the setting; never changes once released.
        default: also tells the type (bool, int, float or str; str needs `choices` or a `folder`).
        tooltip: meaning, range and a sane start, in a sentence or two.
        minimum, maximum, step: for numbers.
        choices: for text.
        unit: what the number counts, e.g. "tokens"; empty for pure numbers.
        advanced: rarely needed.
        folder: for text that is a file's path, "" for none; hosts let a name be given, of a file in their folder of
            models that is called so.
        optional: whether a graph may lack it, as those that were saved before it was there do.
    """

    name: str
    default: Value
    tooltip: str
    minimum: float = 0.0
    maximum: float = 1.0
    step: float = 0.01
    choices: tuple[str, ...] = ()
    unit: str = ""
    advanced: bool = False
    folder: str = ""
    optional: bool = False

    def check(self, value: object) -> Value:
        """Return `value` in this parameter's type, or raise SettingError."""
        if isinstance(self.default, bool):
            if isinstance(value, bool):
                return value
            raise SettingError(f"Setting '{self.name}' is {value!r}.", "It has to be true or false.")
        if self.folder:
            if isinstance(value, str):
                return value.strip()
            raise SettingError(f"Setting '{self.name}' is {value!r}.", "It has to be text.")
        if isinstance(self.default, str):
            if isinstance(value, str) and value in self.choices:
                return value
            raise SettingError(f"Setting '{self.name}' is {value!r}.", f"Choose one of: {', '.join(self.choices)}.")
        return self._check_number(value)

    def _check_number(self, value: object) -> Value:
        bounds = f"It has to be a number from {self.minimum:g} to {self.maximum:g}."
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise SettingError(f"Setting '{self.name}' is {value!r}.", bounds)
        if not self.minimum <= value <= self.maximum:
            raise SettingError(f"Setting '{self.name}' is {value!r}.", bounds)
        if isinstance(self.default, int):
            if value != int(value):
                raise SettingError(f"Setting '{self.name}' is {value!r}.", "It has to be a whole number.")
            return int(value)
        return float(value)


@dataclass(frozen=True)
class MethodSpec:
    """What a method is.

    Attributes:
        name: id used in files and graphs; never changes once released.
        title: name shown to people.
        paper: citation with its identifier.
        summary: what it does, one sentence.
        families: names of the families it was proven on.
        parameters: its settings, in the order they are shown; new ones are appended.
        wants: what it needs that not every family has.
        small: settings for models as small as the demo world's, where they differ from the defaults.
    """

    name: str
    title: str
    paper: str
    summary: str
    families: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    wants: tuple[Need, ...] = ()
    small: Mapping[str, Value] = field(default_factory=dict[str, Value])

    @property
    def asks(self) -> bool:
        """Whether it needs something that the user has to give."""
        return any(need.given for need in self.wants)

    def missing(self, family: Family) -> Need | None:
        """The first of what it needs that a family has not."""
        return next((need for need in self.wants if not need.met(family)), None)

    def settings(self, given: Mapping[str, object]) -> dict[str, Value]:
        """Check given settings and fill in defaults.

        Raises:
            SettingError: a value is out of range, or a name is unknown.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise SettingError(
                f"Method '{self.name}' has no setting '{unknown[0]}'.", f"Its settings are: {', '.join(known)}."
            )
        return {name: parameter.check(given.get(name, parameter.default)) for name, parameter in known.items()}
