"""The report as a file. What a browser makes of it: tests/browser."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from apr_agents.trace.html import record, report
from apr_agents.trace.timeline import timeline
from apr_agents.trace.trajectory import Trajectory
from tests.trace.runs import call, roots, thread, trajectory

SCRIPT = re.compile(r"<script([^>]*)>(.*?)</script>", re.DOTALL)


def data(page: str) -> Any:
    [found] = [text for attributes, text in SCRIPT.findall(page) if 'id="data"' in attributes]
    return json.loads(found)


@given(st.text() | st.sampled_from(["</script>", "<!--<script>", "]]>", "$data $policy ${style}"]))
def test_text_comes_through_whatever_it_is(text: str) -> None:
    page = report(trajectory(thread("0", [call(1, text=text)]), question=text))
    shown = data(page)["record"]
    assert shown["question"] == shown["threads"][0]["steps"][0]["text"] == text
    assert len(SCRIPT.findall(page)) == 3


def test_the_policy_lets_the_pages_own_scripts_run_and_nothing_load(run: Trajectory) -> None:
    page = report(run)
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["connect-src"] == "'none'"
    scripts = [text for attributes, text in SCRIPT.findall(page) if 'id="data"' not in attributes]
    digests = [b64encode(sha256(text.encode()).digest()).decode() for text in scripts]
    assert rules["script-src"].split() == [f"'sha256-{digest}'" for digest in digests]


@given(roots)
def test_the_page_has_every_thread_and_bar_of_the_record(root: Any) -> None:
    run = trajectory(root)
    shown = record(run)
    threads = shown["threads"]
    assert [each["id"] for each in threads] == list(run.threads())
    for unit, bars in shown["timelines"].items():
        assert [(threads[place]["id"], activity) for place, _, activity, *_ in bars] == [
            (bar.thread.id, bar.activity) for bar in timeline(root, unit)
        ]
    assert len(shown["decisions"]) == len(run.decisions())
    assert dict(shown["metrics"])["critical path"] == str(run.metrics().critical_path)


def test_blocks_name_their_threads_and_threads_their_parent(run: Trajectory) -> None:
    threads = record(run)["threads"]
    for each in threads:
        for step in each["steps"]:
            if step["kind"] == "block":
                assert {threads[place]["parent"] for place in step["threads"]} == {each["id"]}
    assert threads[0]["parent"] is None


def test_the_texts_of_the_steps_make_up_the_transcript(run: Trajectory) -> None:
    for each in record(run)["threads"]:
        texts = [step["text"] for step in each["steps"] if step["kind"] != "summary"]
        assert "".join(texts) == run.threads()[each["id"]].transcript
