"""How well agents do on problems, what their threads cost, and whether a difference is one.

Knows problems, verifiers and trajectories; never how an agent was built.
"""

AT_ONCE = 32
"""Problems in progress at once. How many of their model calls run is the agents' own limit."""
