"""Ways to make one eraser of a stack: one file each."""
