"""How a model says spawn and join. One variant per file."""
