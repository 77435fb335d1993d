"""Pages of lists of which the viewer may not see everything."""

from collections.abc import Callable
from typing import Any

LARGER_STEP = 100  # rows, when those of a page were not enough
MOST_STEPS = 5

Row = tuple  # the ID of what is listed first; last, its position in the list that is paged through


def full_page(
    rows_below: Callable[[int, int], list[Row]], seen: Callable[[list[Row]], dict[int, Any]], below: int, count: int
) -> tuple[list, int | None, int | None]:
    """The next `count` of what the viewer may see in a list.

    `rows_below(position, n)` are the next n rows; `seen(rows)`, what there is to see of them, by ID. Where some is
    hidden, it goes on below, for a client may take a page that is short, or empty, for the last one; only where very
    much is, is it short nevertheless. Also returned are the position of the list's first row here, and that of the last
    one if there may be more.
    """
    found: list[Any] = []
    first, step = None, count
    for _ in range(MOST_STEPS):
        rows = rows_below(below, step + 1)  # one more tells whether there is a next page
        first = first or (rows[0][-1] if rows else None)
        to_see = seen(rows[:step])
        for at, row in enumerate(rows[:step], 1):
            if row[0] in to_see:
                found.append(to_see[row[0]])
                if len(found) == count:
                    return found, first, row[-1] if at < len(rows) else None
        if len(rows) <= step:
            return found, first, None
        below, step = rows[step - 1][-1], LARGER_STEP
    return found, first, below
