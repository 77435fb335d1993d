"""Many photos at once, as far as a viewer may see them."""

from collections.abc import Callable

from accounts.cached import USERS
from accounts.paging import full_page
from accounts.visibility import NOBODY, Sight, sight_of
from photos.cached import MEDIA
from photos.models import Status
from shardmap import cache

Row = tuple[int, int, int]  # photo, owner, and the position in the list that is paged through


def page(
    viewer_id: int | None, rows_below: Callable[[int, int], list[Row]], below: int, count: int
) -> tuple[list[dict], int | None, int | None]:
    """`full_page` of the photos in a list, as values of kind MEDIA."""

    def seen_of(rows: list[Row]) -> dict[int, dict]:
        return {photo["id"]: photo for photo in seen(viewer_id, [row[:2] for row in rows])}

    return full_page(rows_below, seen_of, below, count)


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
