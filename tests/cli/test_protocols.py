"""``apr-agents protocols``."""

import pytest

from apr_agents.protocols import PROTOCOLS


@pytest.mark.parametrize("columns", ["80", "200"])
def test_the_table_says_all_of_every_protocol(run, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    result = run("protocols")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= int(columns)
    names = [line.split()[0] for line in lines if line[2:3].strip() and "─" not in line]
    assert [name for name in names if name in PROTOCOLS] == list(PROTOCOLS)
    shown = "".join(result.stdout.split())
    if columns == "200":
        for name, protocol in PROTOCOLS.items():
            assert name in shown
            for word in " ".join(protocol.profile).split():
                assert word in result.stdout


def test_the_table_says_what_kind_of_model_a_protocol_needs(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    told = run("protocols").stdout
    assert told.count("a text model") == len(PROTOCOLS) - 1
    assert told.count("a chat model") == 1
