"""The record of a run, its measures, and how it is shown."""
