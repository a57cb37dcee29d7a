"""Method specs become node inputs here, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from comfy_api.latest import io

from ..erasers.errors import SettingError
from ..erasers.spec import MethodSpec, Parameter


def method_input(id: str, specs: Iterable[MethodSpec], tooltip: str) -> io.DynamicCombo.Input:
    """One dynamic combo: a method by name, then that method's own settings."""
    options = [io.DynamicCombo.Option(spec.name, [_widget(p) for p in spec.parameters]) for spec in specs]
    return io.DynamicCombo.Input(id, options=options, tooltip=tooltip)


def chosen_method(id: str, value: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Split what the host passes for a dynamic combo into the method's name and its settings.

    Raises:
        SettingError: the host passed nothing, because the choice is unknown or missing.
    """
    if not value or id not in value:
        raise SettingError(f"Input '{id}' names no known method.", "Choose one in the node.")
    # A setting that the graph lacks comes as None.
    return value[id], {name: own for name, own in value.items() if name != id and own is not None}


def _widget(parameter: Parameter) -> io.Input:
    tooltip = parameter.tooltip + (f" Unit: {parameter.unit}." if parameter.unit else "")
    shared: dict[str, Any] = {
        "tooltip": tooltip,
        "advanced": parameter.advanced or None,
        "optional": parameter.optional,
    }
    if isinstance(parameter.default, bool):
        return io.Boolean.Input(parameter.name, default=parameter.default, **shared)
    if parameter.folder:
        return io.String.Input(parameter.name, default=str(parameter.default), **shared)
    if isinstance(parameter.default, str):
        return io.Combo.Input(parameter.name, options=list(parameter.choices), default=parameter.default, **shared)
    if isinstance(parameter.default, int):
        return io.Int.Input(
            parameter.name,
            default=parameter.default,
            min=int(parameter.minimum),
            max=int(parameter.maximum),
            step=max(1, int(parameter.step)),
            control_after_generate=False,
            **shared,
        )
    return io.Float.Input(
        parameter.name,
        default=parameter.default,
        min=parameter.minimum,
        max=parameter.maximum,
        step=parameter.step,
        round=False,
        **shared,
    )
