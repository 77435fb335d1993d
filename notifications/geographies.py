"""Circles on the map, which subscriptions made."""

from accounts.errors import NotFound
from notifications.models import Geography
from photos import places


def media_in(
    viewer_id: int | None, geography_id: int, below: int, above: int, count: int
) -> tuple[list[dict], int | None]:
    """Photos taken in a geography that the viewer may see, latest first, as `places.media_near`. Raises NotFound."""
    circle = Geography.objects.filter(subscription_id=geography_id).first()
    if circle is None:
        raise NotFound(f"there is no geography {geography_id}")
    return places.media_near(viewer_id, circle.latitude, circle.longitude, circle.radius, below, above, count)
