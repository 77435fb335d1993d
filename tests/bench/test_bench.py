import json

import pytest
from django.core.management import CommandError, call_command

from bench import ids


def test_a_bench_prints_one_json_object_on_the_last_line(capsys):
    call_command("bench", "freshness", "--n", "20", "--json")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["bench"] == "freshness"
    assert "cores" in result["machine"]
    assert result["photos"] == 20
    assert 0 < result["ms, p50"] <= result["ms, p99"] <= result["ms, slowest"]


def test_what_a_bench_compares_is_drawn(tmp_path, monkeypatch, capsys):
    for name, small in (("ROWS_A_SESSION", 1000), ("BATCH", 500), ("ROUNDS", 1)):
        monkeypatch.setattr(ids, name, small)
    plot = tmp_path / "ids.png"
    call_command("bench", "ids", "--json", "--plot", str(plot))
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["rows a session"] == 1000
    assert result["duplicates, 8 sessions"] == 0
    assert result["next_id, 8 sessions, rows/s"] > 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_what_compares_nothing_is_not_drawn(tmp_path):
    with pytest.raises(CommandError, match="photo compares nothing"):
        call_command("bench", "photo", "--plot", str(tmp_path / "photo.png"))
