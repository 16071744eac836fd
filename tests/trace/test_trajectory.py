from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_agents.backends.scripted import Reply
from apr_agents.errors import InvalidTrace
from apr_agents.graph.build import create_parallel_agent
from apr_agents.trace.trajectory import MEASURED, Trajectory
from apr_agents.types import Call, ThreadResult


@pytest.fixture
async def run(ask: Any, scripted: Any, outlines: Any) -> Trajectory:
    """A run that spawned, with a thread that failed and outlines left out."""
    backend = scripted(
        {
            "0/0": "Split.\n" + outlines("a", "b ü\x00\u2028 \U0001f600", *"cdefghi"),
            "0.2/0": Reply("half", fails=OSError("line\nbroke")),
            "0.*/0": " 4</Thread>",
            "0/2": "\n</Parallel></think>4",
        }
    )
    return await ask(create_parallel_agent(backend))


async def test_a_run_is_the_same_after_json(run: Trajectory, tmp_path: Path) -> None:
    assert run.metrics().threads == 8
    assert Trajectory.model_validate(json.loads(json.dumps(run.to_dict()))) == run
    path = tmp_path / "run.json"
    run.save(path)
    loaded = Trajectory.load(path)
    assert loaded == run
    assert loaded.metrics() == run.metrics()
    assert loaded.threads()["0.2"].outline == run.threads()["0.2"].outline


async def test_every_thread_is_found_under_its_id(run: Trajectory) -> None:
    assert list(run.threads()) == ["0", *(f"0.{i}" for i in range(1, 9))]
    assert run.threads()["0"] is run.root


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "the file: invalid json"),
        (b"{", "the file: invalid json"),
        (b"\xff\xfe", "the file: invalid json"),
        (b"[]", "the file: "),
        (b"null", "the file: "),
        (b"{}", "question: field required"),
        (b"[" * 5000, "the file: invalid json"),
    ],
)
def test_a_file_that_is_no_trajectory_is_refused_in_one_line(
    tmp_path: Path, content: bytes, why: str
) -> None:
    path = tmp_path / "odd.json"
    path.write_bytes(content)
    with pytest.raises(InvalidTrace) as caught:
        Trajectory.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is not a trajectory of apr-agents: {why}")
    assert "\n" not in message
    assert caught.value.path == str(path)


async def test_a_damaged_trajectory_is_refused_where_it_is_damaged(
    run: Trajectory, tmp_path: Path
) -> None:
    path = tmp_path / "run.json"
    for where, damage in {
        "version": {"version": 3},
        "root.status": {"root": {**run.root.model_dump(), "status": "asleep"}},
        "root.steps.0": {"root": {**run.root.model_dump(), "steps": [{"kind": "dream"}]}},
        "mood": {"mood": "good"},
    }.items():
        path.write_text(json.dumps({**run.to_dict(), **damage}))
        with pytest.raises(InvalidTrace, match=rf"trajectory of apr-agents: {where}") as caught:
            Trajectory.load(path)
        assert "\n" not in str(caught.value)


VERSION_1 = Path(__file__).parent / "version_1.json"


def test_a_record_of_version_1_is_read_without_its_times(tmp_path: Path) -> None:
    old = Trajectory.load(VERSION_1)
    assert (old.version, old.began, old.unit) == (1, None, "tokens")
    assert [step.kind for step in old.root.steps] == [
        "call", "tool", "block", "note", "summary", "backtrack", "call"
    ]  # fmt: skip
    assert old.metrics().total_tokens == 36
    assert (old.metrics().gate_wait, old.metrics().prefix_hit_share) == (0.0, None)
    old.save(tmp_path / "again.json")
    assert Trajectory.load(tmp_path / "again.json") == old


def test_a_run_of_today_has_times(run: Trajectory) -> None:
    assert (run.version, run.unit) == (2, "seconds")
    assert run.began is not None
    assert run.began.utcoffset() == timedelta(0)
    assert run.root.ended > 0


def test_every_record_fits_the_schema(run: Trajectory) -> None:
    valid = jsonschema_rs.validator_for(Trajectory.model_json_schema())
    for record in (run.to_dict(), json.loads(VERSION_1.read_text())):
        assert [error.message for error in valid.iter_errors(record)] == []
    for where, damage in {"version": 3, "root": {}, "mood": "good"}.items():
        assert not valid.is_valid({**run.to_dict(), where: damage})


def test_what_depends_on_the_machine_is_named_in_one_place(run: Trajectory) -> None:
    """All other fields are the same in every run of the same seed."""
    numbers = {name for name, field in Call.model_fields.items() if field.annotation is float}
    numbers |= {name for name, field in ThreadResult.model_fields.items() if
                field.annotation is float}  # fmt: skip
    assert numbers <= MEASURED
    assert {"began", "at", "cached_tokens", "first_token"} <= MEASURED
    assert not MEASURED & {"text", "tokens", "prompt_tokens", "status", "steps", "budget"}


def test_a_missing_file_and_a_folder_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidTrace, match="No such file or directory"):
        Trajectory.load(tmp_path / "none.json")
    with pytest.raises(InvalidTrace, match="directory"):
        Trajectory.load(tmp_path)


json_data = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(data=json_data)
def test_no_json_of_others_is_taken_for_a_trajectory(
    data: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "alien.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InvalidTrace) as caught:
        Trajectory.load(path)
    assert len(str(caught.value).splitlines()) == 1
