"""The real graph on a simulated model: what a shape of thinking takes, in virtual time.

Nothing here is measured on a machine: times and errors follow from the formulas that
`Hardware` and `Workload` (`scenario.py`) state.
"""
