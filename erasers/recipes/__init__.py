"""Training recipes, one file each: which blocks of `learn/` a published method is made of."""
