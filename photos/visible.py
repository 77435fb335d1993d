"""Many photos at once, as far as a viewer may see them."""

from accounts.cached import USERS
from accounts.visibility import Sight, sight_of
from photos.cached import MEDIA
from photos.models import Status
from shardmap import cache


def seen(viewer_id: int | None, photos: list[tuple[int, int]]) -> list[dict]:
    """Those of many photos, (photo, owner), that the viewer may see, in their order, as values of kind MEDIA."""
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
    ]
