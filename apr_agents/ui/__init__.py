"""The live page: a question box, and the run that it starts, told to a browser."""
