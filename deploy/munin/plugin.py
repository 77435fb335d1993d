"""What our Munin plugins share: Munin's protocol, the app's settings, and what happened since the last time.

What takes long to import, a plugin imports in `values`: Munin asks for the graphs as often as for the values.
Munin runs a plugin with `config` to hear what its graphs are, and without an argument for their values
(guide.munin-monitoring.org, "Protocol for data exchange", "Multigraph plugins"). Ours have several graphs each.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

Values = Mapping[str, Mapping[str, float | None]]  # graph → line → value, None or lacking if unknown

# The app's settings, which Munin does not have in its environment.
if file := os.environ.get("ENV_FILE"):
    lines = Path(file).read_text().splitlines()
    os.environ.update(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "instagram.settings")


@dataclass
class Line:
    """One of a graph's. `warning` and `critical` are Munin's ranges: "10" (not above), "5:" (not below), "5:10"."""

    name: str
    label: str
    kind: str = "GAUGE"  # DERIVE: a counter, which Munin draws as a rate
    draw: str = "LINE1"  # AREASTACK: one upon the other
    warning: str = ""
    critical: str = ""

    def config(self) -> Iterable[str]:
        yield f"{self.name}.label {self.label}"
        yield f"{self.name}.type {self.kind}"
        yield f"{self.name}.draw {self.draw}"
        yield f"{self.name}.min 0"  # also: a counter that began anew is no negative rate
        for limit in ("warning", "critical"):
            if getattr(self, limit):
                yield f"{self.name}.{limit} {getattr(self, limit)}"


@dataclass
class Graph:
    name: str
    title: str
    unit: str  # beside the graph
    info: str  # below it
    lines: list[Line]
    period: str = "second"  # of rates

    def config(self) -> Iterable[str]:
        yield f"multigraph {self.name}"
        yield f"graph_title {self.title}"
        yield f"graph_vlabel {self.unit}"
        yield f"graph_info {self.info}"
        yield f"graph_period {self.period}"
        yield "graph_category instagram"
        yield "graph_args --base 1000 --lower-limit 0"
        for line in self.lines:
            yield from line.config()

    def values(self, found: Mapping[str, float | None]) -> Iterable[str]:
        yield f"multigraph {self.name}"
        for line in self.lines:
            value = found.get(line.name)
            if value is not None:
                value = int(value) if line.kind == "DERIVE" else round(value, 6)
            yield f"{line.name}.value {'U' if value is None else value}"


def answer(graphs: list[Graph], values: Callable[[], Values]) -> None:
    """Says what Munin has asked for. `values` is called for values alone."""
    if sys.argv[1:] == ["config"]:
        said = [line for graph in graphs for line in graph.config()]
    else:
        found = values()
        said = [line for graph in graphs for line in graph.values(found.get(graph.name, {}))]
    print("\n".join(said))


def since_last_time(counts: Mapping[str, float]) -> tuple[float, dict[str, float]] | None:
    """Seconds since the last call, and how much each count has grown; None at the first, or if one began anew."""
    file, now = Path(os.environ["MUNIN_STATEFILE"]), time.time()
    try:
        then, before = json.loads(file.read_text())
    except (OSError, ValueError):
        then, before = now, {}
    draft = file.with_suffix(".new")
    draft.write_text(json.dumps([now, dict(counts)]))
    draft.replace(file)
    grown = {name: count - before.get(name, 0) for name, count in counts.items()}
    return (now - then, grown) if now > then and min(grown.values(), default=0) >= 0 else None
