"""What Prometheus reads."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.server.harness import NAME, Running, wait_until

BODY = {"model": NAME, "prompt": "m", "max_tokens": 10, "temperature": 0}


def read(server: Running) -> dict[str, float]:
    page = httpx.get(f"{server.url}/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    return {
        sample.name + "".join(f"/{value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }


def test_what_an_answer_takes_is_counted(server: Running) -> None:
    before = read(server)
    server.post("/completions", BODY | {"prompt": "a long prompt for the cache" * 3, "n": 2})
    after = read(server)
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown["apr:time_to_first_token_seconds_count"] == 2
    assert grown["apr:inter_token_latency_seconds_count"] == 18
    assert grown["apr:inter_token_latency_seconds_sum"] > 0
    assert grown["apr:generated_tokens_total"] == 20
    assert grown["apr:answers_total/length"] == 2
    assert grown["apr:prompt_tokens_cached_total"] >= 80
    assert grown["apr:prompt_tokens_computed_total"] >= 80
    assert after["apr:kv_slots"] == 4096
    assert 0 < after["apr:kv_slots_used"] <= 4096


def test_running_answers_leave_fewer_lanes_free(server: Running) -> None:
    lanes = read(server)["apr:free_lanes"]
    server.engine.says, server.engine.delay = (lambda prompt: "x" * 500), 0.01
    stream = server.client.completions.create(**(BODY | {"max_tokens": 500}), n=3, stream=True)
    assert wait_until(lambda: server.engine.load == (3, 0))
    busy = read(server)
    stream.close()
    assert (busy["apr:running"], busy["apr:waiting"]) == (3, 0)
    assert busy["apr:free_lanes"] == lanes - 3
    assert server.becomes_idle()
    assert read(server)["apr:free_lanes"] == lanes
