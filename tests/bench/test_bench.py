import json
import os
import subprocess
import sys

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command


def test_a_bench_prints_one_json_object_on_the_last_line(capsys):
    call_command("bench", "freshness", "--n", "20", "--json")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["bench"] == "freshness"
    assert "cores" in result["machine"]
    assert result["photos"] == 20
    assert 0 < result["ms, p50"] <= result["ms, p99"] <= result["ms, slowest"]


def test_a_bench_on_a_stack_of_its_own_draws_its_comparison_and_leaves_nothing(tmp_path):
    plot = tmp_path / "fan_out.png"
    command = [sys.executable, settings.BASE_DIR / "manage.py", "bench", "fan_out", "--n", "25000", "--json"]
    done = subprocess.run([*command, "--plot", plot], timeout=400, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert result["followers"] == 25_000
    assert result["one worker, deliveries/s"] > 0
    assert result["MB that the worker grew"] < 10
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert os.environ["STACK"] != "bench"
    assert not (settings.BASE_DIR / ".local/bench").exists()


def test_what_compares_nothing_is_not_drawn(tmp_path):
    with pytest.raises(CommandError, match="photo compares nothing"):
        call_command("bench", "photo", "--plot", str(tmp_path / "photo.png"))
