"""Keeping a copy in one database equal to the truth in another."""

from collections.abc import Callable
from typing import TypeVar

State = TypeVar("State")


def mirror(read: Callable[[], State], write: Callable[[State], None], state: State | None = None) -> None:
    """Writes what `read` says until it says the same after the write as before. `state` is what it said a moment ago.

    Two of these may run at once, and the one that read the older state must not have the last word: it finds out by
    reading again. `write` must bring the copy to that state from any other.
    """
    state = read() if state is None else state
    while True:
        write(state)
        before, state = state, read()
        if state == before:
            return
