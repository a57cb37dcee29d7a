"""Turns a workflow, as the front end saves it, into the prompt that the server runs.

The saved file holds a node's widget values by position; only the server's /object_info says what
they are. Knows what this project's workflows use; anything else is refused, never guessed at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .errors import ConvertError

Json = dict[str, Any]
Slot = tuple[str, int]

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
# Only shows results: has no saved value, but the front end names it in every prompt.
VIEWER, VIEWER_VALUE = "IMAGECOMPARE", {"__value__": ["", ""]}
COMMENTS = {"Note", "MarkdownNote"}
ALWAYS = 0  # a node's mode when it is neither muted nor bypassed


def to_prompt(workflow: Json, object_info: Json) -> Json:
    """Converts a saved workflow.

    Args:
        workflow: the front end's file, format 0.4 (`nodes`, `links`).
        object_info: the server's description of its nodes, by node id.
    Returns:
        An API prompt: node id -> {"class_type", "inputs"}.
    Raises:
        ConvertError: the workflow holds something unknown, or its values do not fit the nodes.
    """
    if (workflow.get("definitions") or {}).get("subgraphs"):
        raise ConvertError("subgraphs are not supported")
    links: dict[int, Slot] = {link[0]: (str(link[1]), link[2]) for link in workflow["links"]}
    prompt: Json = {}
    for node in workflow["nodes"]:
        if node["type"] in COMMENTS:
            continue
        name = _name(node)
        if node["type"] not in object_info:
            raise ConvertError(f"{name}: the server has no such node")
        if node.get("mode", ALWAYS) != ALWAYS:
            raise ConvertError(f"{name}: muted and bypassed nodes are not supported")
        inputs = widget_inputs(node, object_info[node["type"]])
        for socket in node.get("inputs") or ():
            if socket.get("link") is not None:
                inputs[socket["name"]] = list(links[socket["link"]])
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def widget_inputs(node: Json, info: Json) -> Json:
    """Returns the API inputs that a saved node's widget values stand for.

    Args:
        node: the node as it is saved in a workflow.
        info: the server's description of this node.
    """
    name = _name(node)
    saved = node.get("widgets_values") or []
    if not isinstance(saved, list):
        raise ConvertError(f"{name}: values saved by name are not supported")
    values = iter(saved)
    inputs = dict(_read(name, values, info["input"], ""))
    left = list(values)
    if left:
        raise ConvertError(f"{name}: {len(left)} values too many; it was saved by another version: {left}")
    return inputs


def _name(node: Json) -> str:
    return f"node {node['id']} ({node['type']})"


def _read(name: str, values: Iterator[Any], groups: Mapping[str, Json], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yields name and value of each widget, in the order in which the front end makes them.

    Optional ones at the end, which came after the workflow was saved, are left at what the node takes for them.
    """
    for group in ("required", "optional"):
        for key, spec in groups.get(group, {}).items():
            kind, options = _kind(spec)
            if kind == VIEWER:
                yield prefix + key, VIEWER_VALUE
            elif options.get("forceInput") or kind not in WIDGETS | {DYNAMIC}:
                continue
            else:
                try:
                    value = _next(name, values, prefix + key)
                except ConvertError:
                    if group == "required":
                        raise
                    return
                yield prefix + key, {"__value__": value} if isinstance(value, list) else value
                if kind == DYNAMIC:
                    inner = _option(name, prefix + key, value, options)
                    yield from _read(name, values, inner, f"{prefix}{key}.")
                elif _has_companion(kind, key, options):
                    _next(name, values, f"what follows {key}")


def _kind(spec: list[Any]) -> tuple[str, Json]:
    """Returns an input's type and options; a list in place of the type is an older way to write a combo."""
    options = spec[1] if len(spec) > 1 else {}
    return ("COMBO" if isinstance(spec[0], list) else spec[0]), options


def _option(name: str, key: str, value: Any, options: Json) -> Mapping[str, Json]:
    for option in options["options"]:
        if option["key"] == value:
            return option["inputs"]
    raise ConvertError(f"{name}: {key} has no option {value!r}")


def _has_companion(kind: str, key: str, options: Json) -> bool:
    """Does the front end save a second value after this one, which the server never sees?

    It is a seed's "control after generate", or a picture's upload button.
    """
    if kind == "COMBO":
        if options.get("control_after_generate"):
            raise ConvertError(f"{key}: combos with control after generate are not supported")
        return bool(options.get("image_upload"))
    return kind == "INT" and bool(options.get("control_after_generate", key in ("seed", "noise_seed")))


def _next(name: str, values: Iterator[Any], key: str) -> Any:
    for value in values:
        return value
    raise ConvertError(f"{name}: no value was saved for {key}; it was saved by another version")
