"""Many photos at once, as far as a viewer may see them."""

from collections.abc import Callable

from accounts.cached import USERS
from accounts.visibility import NOBODY, Sight, sight_of
from photos.cached import MEDIA
from photos.models import Status
from shardmap import cache

LARGER_STEP = 100  # rows, when those of a page were not enough
MOST_STEPS = 5

Row = tuple[int, int, int]  # photo, owner, and the position in the list that is paged through


def page(
    viewer_id: int | None, rows_below: Callable[[int, int], list[Row]], below: int, count: int
) -> tuple[list[dict], int | None, int | None]:
    """A page of the photos in a list that the viewer may see, as values of kind MEDIA, latest first.

    `rows_below(position, n)` are the next n rows. Where some are hidden, it goes on below them, for a client may take
    a page that is short, or empty, for the last one; only where very many are, is it short nevertheless. Also returned
    are the position of the list's first row here, and that of the last one if there may be more.
    """
    found: list[dict] = []
    first, step = None, count
    for _ in range(MOST_STEPS):
        rows = rows_below(below, step + 1)  # one more tells whether there is a next page
        first = first or (rows[0][2] if rows else None)
        media = {photo["id"]: photo for photo in seen(viewer_id, [row[:2] for row in rows[:step]])}
        for at, (photo_id, _, position) in enumerate(rows[:step], 1):
            if photo_id in media:
                found.append(media[photo_id])
                if len(found) == count:
                    return found, first, position if at < len(rows) else None
        if len(rows) <= step:
            return found, first, None
        below, step = rows[step - 1][2], LARGER_STEP
    return found, first, below


def seen(viewer_id: int | None, photos: list[tuple[int, int]], *, public: bool = False) -> list[dict]:
    """Those of many photos, (photo, owner), that the viewer may see, in their order, as values of kind MEDIA.

    With `public`, only those of them that nobody in particular may see as well.
    """
    media, users, *sight = cache.fetch(
        (MEDIA, [photo_id for photo_id, _ in photos]),
        (USERS, [owner_id for _, owner_id in photos]),
        *sight_of(viewer_id),
    )
    viewer = Sight.of(viewer_id, *sight)
    return [
        media[photo_id]
        for photo_id, owner_id in photos
        if photo_id in media
        and media[photo_id]["status"] == Status.READY
        and owner_id in users
        and viewer.sees(users[owner_id])
        and (not public or NOBODY.sees(users[owner_id]))
    ]
