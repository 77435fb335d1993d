"""A result's comparisons as bars, in a PNG."""

import textwrap
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")  # draws without a display
from matplotlib import pyplot

INCHES_WIDE, INCHES_A_BAR, INCHES_AROUND = 5.5, 0.3, 1.2
LETTERS_A_PANEL = 70  # of the title's lines


def plot(path: str, title: str, result: dict[str, float], units: Sequence[str]) -> None:
    """Draws a panel for each unit: of the result's entries that are named "<what>, <unit>"."""
    panels = {
        unit: {name.removesuffix(f", {unit}"): value for name, value in result.items() if name.endswith(f", {unit}")}
        for unit in units
    }
    height = INCHES_AROUND + INCHES_A_BAR * max(len(bars) for bars in panels.values())
    figure, axes = pyplot.subplots(1, len(panels), squeeze=False, figsize=(INCHES_WIDE * len(panels), height))
    for axis, (unit, bars) in zip(axes[0], panels.items(), strict=True):
        drawn = axis.barh(list(bars), list(bars.values()), color="#3f729b")
        axis.bar_label(drawn, [f"{value:,}" for value in bars.values()], padding=3)
        axis.set_title(unit, fontsize="medium")
        axis.invert_yaxis()
        axis.margins(x=0.3)
        axis.xaxis.set_visible(False)
        axis.spines[:].set_visible(False)
    lines = [textwrap.fill(line, LETTERS_A_PANEL * len(panels)) for line in title.splitlines()]
    figure.suptitle("\n".join(lines), fontsize="medium")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
