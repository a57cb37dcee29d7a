"""The demo world: a small text-to-image model of a drawn world, with its grammar, renderer and judge."""
