import json

import pytest
from django.core.management import CommandError, call_command


def test_a_bench_prints_one_json_object_on_the_last_line_and_draws_its_comparison(capsys, tmp_path):
    plot = tmp_path / "fan_out.png"
    call_command("bench", "fan_out", "--n", "1000", "--json", "--plot", str(plot))
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["bench"] == "fan_out"
    assert "cores" in result["machine"]
    assert result["followers"] == 1000
    assert result["our script, deliveries/s"] > 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_what_compares_nothing_is_not_drawn(tmp_path):
    with pytest.raises(CommandError, match="photo compares nothing"):
        call_command("bench", "photo", "--plot", str(tmp_path / "photo.png"))
