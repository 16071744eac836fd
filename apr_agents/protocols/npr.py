"""NPR's tags (Native Parallel Reasoner: reasoning in parallelism via self-distilled RL).

The model plans, and each plan becomes a thread::

    <guideline>
    <plan>1: …</plan>
    <plan>2: …</plan>
    </guideline>

Each thread continues the same context behind ``<step>\\n1:`` up to ``</step>``. With all steps
back the model writes a ``<takeaway>`` that compares them and computes nothing new; then it
plans again, or answers.
"""

from __future__ import annotations

from apr_agents.protocols.base import Profile
from apr_agents.protocols.tags import TagProtocol, Tags


class NPR(TagProtocol):
    """The protocol of NPR's models. If no thread may start, the model writes the steps itself."""

    name = "npr"
    profile = Profile(
        says="in <guideline> a <plan> for each thread",
        sees="everything before, all plans, no sibling",
        returns="a <step> for each, in the plans' order; the model writes the <takeaway>",
        paper="Wu et al. 2025, arXiv 2512.07461",
    )
    tags = Tags(outlines="guideline", outline="plan", thread="step", conclusion="takeaway")
