"""OpenAI-compatible HTTP over the engine (extra ``[serve]``). Knows no graph and no backend."""
