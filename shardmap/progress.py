"""A progress bar."""

import sys

WIDTH = 40


def draw(done: int, total: int, unit: str) -> None:
    """Shows how far something has come: a bar on a terminal; elsewhere only its end, so that logs stay readable."""
    filled = WIDTH * done // total
    if sys.stdout.isatty():
        print(f"\r[{'#' * filled:{WIDTH}}] {done}/{total} {unit}", end="", flush=True)  # noqa: T201
    if done == total:
        print() if sys.stdout.isatty() else print(f"{done}/{total} {unit}")  # noqa: T201
