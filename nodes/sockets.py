"""Types of the pack's own sockets."""

from __future__ import annotations

from comfy_api.latest import io

Concepts = io.Custom("LETHE_CONCEPTS")
EraserSocket = io.Custom("LETHE_ERASER")
ReportSocket = io.Custom("LETHE_REPORT")
"""A tuple of `erasers.measure.report.Report`."""
StackSocket = io.Custom("LETHE_STACK")
"""An `erasers.stack.Stack`."""
LoraModel = io.Custom("LORA_MODEL")
"""The host's own: a flat dictionary of tensors."""
