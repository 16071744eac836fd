"""A fork-aware engine: token ids in, token ids out. Knows no text and no graph."""
