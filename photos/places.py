"""Places, and photos by place; on Postgres in the directory, since a search by place knows no shard.

Positions are points on the unit sphere in the extension `cube`, which has what is needed (a box search by index, and
distances) and is in every Postgres; PostGIS would be a large guest for two queries. The straight line through the
earth that `cube_distance` measures is shorter than the way along the ground by 1 mm in 5 km.
"""

import math

from django.db import connection, transaction

from accounts.errors import InvalidParameters, NotFound
from photos.cached import LOCATIONS
from photos.models import Location, Photo, PlacedPhoto, Status
from photos.visible import Row, page
from shardmap import cache
from shardmap.shards import on_shard
from workers.mirror import mirror
from workers.outbox import enqueue

EARTH_METRES = 6_371_000
FARTHEST = 5_000  # metres
SAME_PLACE = 100  # metres within which one name means one place


def get_location(location_id: int) -> dict:
    """A place, as a value of kind LOCATIONS. Raises NotFound."""
    (found,) = cache.fetch((LOCATIONS, [location_id]))
    if location_id not in found:
        raise NotFound(f"there is no location {location_id}")
    return found[location_id]


def locations_near(latitude: float, longitude: float, distance: int, count: int) -> list[dict]:
    """Places within `distance` metres, nearest first."""
    point = _point(latitude, longitude)
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT id FROM photos_location
            WHERE position <@ cube_enlarge(cube(%(point)s), %(radius)s, 3)
                AND cube_distance(position, cube(%(point)s)) <= %(radius)s
            ORDER BY cube_distance(position, cube(%(point)s)), id LIMIT %(count)s
            """,
            {"point": point, "radius": distance / EARTH_METRES, "count": count},
        )
        ids = [row[0] for row in cursor.fetchall()]
    (found,) = cache.fetch((LOCATIONS, ids))
    return [found[location_id] for location_id in ids if location_id in found]


def location_of_foursquare(foursquare_v2_id: str) -> list[dict]:
    """The place that Foursquare calls so; a list of one, or of none."""
    ids = list(Location.objects.filter(foursquare_v2_id=foursquare_v2_id).values_list("id", flat=True))
    (found,) = cache.fetch((LOCATIONS, ids))
    return list(found.values())


def find_or_make(name: str, latitude: float | None, longitude: float | None, foursquare_v2_id: str | None) -> int:
    """The ID of a place that a client describes: a known one if it has that name, and is there; else a new one.

    Raises InvalidParameters.
    """
    name = " ".join(name.split())
    if not name or latitude is None or longitude is None:
        raise InvalidParameters("location_name: a place needs a name, latitude and longitude")
    with transaction.atomic(), connection.cursor() as cursor:
        # One at a time for each name of it: two phones at one new place must not make two of it.
        for one in filter(None, (foursquare_v2_id, name.casefold())):
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [one])
        if foursquare_v2_id:
            known = Location.objects.filter(foursquare_v2_id=foursquare_v2_id).first()
            if known is not None:
                return known.id
        for near in locations_near(latitude, longitude, SAME_PLACE, 100):
            if near["name"].casefold() == name.casefold():
                return near["id"]
        made = Location.objects.create(
            name=name, latitude=latitude, longitude=longitude, foursquare_v2_id=foursquare_v2_id or None
        )
    return made.id


def place(owner_id: int, photo_id: int) -> None:
    """Brings what the directory knows of a photo's place up to the photo, as a job, in whatever order they come."""

    def write(state: tuple) -> None:
        status, location_id, latitude, longitude = state
        if status == Status.READY and latitude is not None:
            where = {"location_id": location_id, "latitude": latitude, "longitude": longitude}
            with transaction.atomic():
                values = {"owner_id": owner_id, **where}
                _, created = PlacedPhoto.objects.update_or_create(photo_id=photo_id, defaults=values)
                if created:
                    enqueue("notifications.placed", owner_id=owner_id, photo_id=photo_id)
        else:
            PlacedPhoto.objects.filter(photo_id=photo_id).delete()

    mirror(lambda: _state(owner_id, photo_id), write)


def media_near(
    viewer_id: int | None, latitude: float, longitude: float, distance: int, below: int, above: int, count: int
) -> tuple[list[dict], int | None]:
    """Photos within `distance` metres that the viewer may see, latest first, as values of kind MEDIA.

    And the page's last ID, or None when there are no more.
    """

    def rows_below(position: int, count: int) -> list[Row]:
        return _near(latitude, longitude, distance, position, above, count)

    photos, _, last = page(viewer_id, rows_below, below, count)
    return photos, last


def _near(latitude: float, longitude: float, distance: int, below: int, above: int, count: int) -> list[Row]:
    """The latest photos within `distance` metres."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT photo_id, owner_id, photo_id FROM photos_placedphoto
            WHERE position <@ cube_enlarge(cube(%(point)s), %(radius)s, 3)
                AND cube_distance(position, cube(%(point)s)) <= %(radius)s
                AND photo_id < %(below)s AND photo_id > %(above)s
            ORDER BY photo_id DESC LIMIT %(count)s
            """,
            {
                "point": _point(latitude, longitude),
                "radius": distance / EARTH_METRES,
                "below": below,
                "above": above,
                "count": count,
            },
        )
        return cursor.fetchall()


def media_at(
    viewer_id: int | None, location_id: int, below: int, above: int, count: int
) -> tuple[list[dict], int | None]:
    """Photos of a place that the viewer may see, latest first, as values of kind MEDIA; and the page's last ID.

    The ID is None when there are no more. Raises NotFound.
    """
    get_location(location_id)

    def rows_below(position: int, count: int) -> list[Row]:
        there = PlacedPhoto.objects.filter(location_id=location_id, photo_id__lt=position, photo_id__gt=above)
        return list(there.order_by("-photo_id").values_list("photo_id", "owner_id", "photo_id")[:count])

    photos, _, last = page(viewer_id, rows_below, below, count)
    return photos, last


def _state(owner_id: int, photo_id: int) -> tuple:
    with on_shard(owner_id):
        fields = ("status", "location_id", "latitude", "longitude")
        return Photo.objects.filter(id=photo_id).values_list(*fields).get()


def _point(latitude: float, longitude: float) -> list[float]:
    """A place on the unit sphere."""
    phi, theta = math.radians(latitude), math.radians(longitude)
    return [math.cos(phi) * math.cos(theta), math.cos(phi) * math.sin(theta), math.sin(phi)]
