"""The endpoints about subscriptions, geographies and push. Their docstrings are the API's reference (/developer/)."""

from functools import cache
from importlib.resources import files
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from accounts.errors import InvalidParameters
from accounts.schemas import User, short_user
from accounts.tokens import Caller, Viewer, require_phone
from accounts.types import Count, Cursor, Id
from notifications import geographies, push, schemas, subscriptions
from notifications.schemas import Device, PushSettings, Subscription, Wish
from notifications.subscriptions import client_of
from photos.api import Distance, Latitude, Longitude
from photos.schemas import Media, media_for
from photos.types import MediaId
from shardmap.ids import MAX_ID

VerifyToken = Annotated[str, StringConstraints(max_length=200)]
# Apple's have 32 bytes, and may grow.
DeviceToken = Annotated[
    str,
    StringConstraints(pattern=r"^([0-9A-Fa-f]{2}){32,100}$", to_lower=True),
    Field(description="What Apple's push service calls the phone, in hex"),
]
TimeOfDay = Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]


@cache
def _time_zones() -> frozenset[str]:
    return frozenset((files("tzdata") / "zones").read_text().split())


def _time_zone(name: str) -> str:
    if name not in _time_zones():
        raise ValueError(f"{name!r} is not the name of a time zone, like Europe/Berlin")
    return name


TimeZone = Annotated[str, AfterValidator(_time_zone)]


def create_subscription(
    object: Literal["user", "tag", "location", "geography"],
    aspect: Literal["media"],
    callback_url: str,
    client_id: str = "",
    client_secret: str = "",
    object_id: str | None = None,
    lat: Latitude | None = None,
    lng: Longitude | None = None,
    radius: Distance | None = None,
    verify_token: VerifyToken | None = None,
) -> Subscription:
    """Subscribes to new photos: of the client's users, under a tag, at a location, or in a circle on the map.

    `object_id` is the tag's name or the location's ID; a geography has `lat`, `lng` and `radius` (metres) instead.
    While this request runs, the callback gets a GET with `hub.mode`, `hub.challenge` and `hub.verify_token`, and must
    answer with the value of `hub.challenge` and nothing else.
    """
    client = client_of(client_id, client_secret)
    given = [value for value in (lat, lng, radius) if value is not None]
    if len(given) not in (0, 3):
        raise InvalidParameters("lat: give lat, lng and radius together, for a geography")
    circle = (lat, lng, radius) if given else None
    made = subscriptions.subscribe(client, object, object_id, circle, callback_url, verify_token)
    return schemas.subscription(made)


def list_subscriptions(client_id: str = "", client_secret: str = "") -> list[Subscription]:
    """The client's subscriptions."""
    client = client_of(client_id, client_secret)
    return [schemas.subscription(one) for one in subscriptions.subscriptions_of(client)]


def delete_subscriptions(
    client_id: str = "",
    client_secret: str = "",
    id: Id | None = None,
    object: Literal["all", "user", "tag", "location", "geography"] | None = None,
) -> None:
    """Ends one of the client's subscriptions, those to one kind of object, or all."""
    subscriptions.unsubscribe(client_of(client_id, client_secret), id, object)


def geography_media(
    viewer: Caller,
    geography_id: Id,
    count: Count = 20,
    max_id: MediaId | None = None,
    min_id: MediaId | None = None,
) -> tuple[list[Media], Cursor]:
    """Photos taken in a geography that somebody has subscribed to, latest first."""
    below, above = max_id.photo_id if max_id else MAX_ID, min_id.photo_id if min_id else 0
    photos, last_id = geographies.media_in(viewer.user_id, geography_id, below, above, count)
    return media_for(viewer.user_id, photos), {} if last_id is None else {"max_id": str(last_id)}


def register_device(viewer: Viewer, token: DeviceToken, environment: Literal["production", "sandbox"]) -> Device:
    """Makes a phone one that gets the user's notifications, and nobody else's any more. For the phone app alone."""
    require_phone(viewer)
    return schemas.device(push.register(viewer.user_id, token, environment))


def list_devices(viewer: Viewer) -> list[Device]:
    """The phones that get the user's notifications, the latest first. For the phone app alone."""
    require_phone(viewer)
    return [schemas.device(one) for one in push.devices_of(viewer.user_id)]


def unregister_device(viewer: Viewer, token: DeviceToken) -> None:
    """Ends notifications on a phone; to be called when somebody logs out. For the phone app alone."""
    require_phone(viewer)
    push.unregister(viewer.user_id, token)


def get_push_settings(viewer: Viewer) -> PushSettings:
    """What the user is notified of, and when not. For the phone app alone."""
    require_phone(viewer)
    return schemas.push_settings(push.settings_of(viewer.user_id))


def change_push_settings(
    viewer: Viewer,
    likes: Wish | None = None,
    comments: Wish | None = None,
    mentions: Wish | None = None,
    follows: Wish | None = None,
    follow_requests: Wish | None = None,
    first_photos: Wish | None = None,
    friends_joined: Wish | None = None,
    quiet_from: TimeOfDay | None = None,
    quiet_to: TimeOfDay | None = None,
    time_zone: TimeZone | None = None,
    language: Literal["en", "de"] | None = None,
) -> PushSettings:
    """Changes some settings, and returns all. Equal `quiet_from` and `quiet_to` mean no quiet hours."""
    given = {name: value for name, value in locals().items() if name != "viewer" and value is not None}
    require_phone(viewer)
    return schemas.push_settings(push.change_settings(viewer.user_id, **given))


def list_muted(viewer: Viewer) -> list[User]:
    """Whom the user has muted, the latest first. For the phone app alone."""
    require_phone(viewer)
    return [short_user(user, bio=True) for user in push.muted_by(viewer.user_id)]


def mute(viewer: Viewer, user_id: Id) -> User:
    """Ends notifications of somebody's doings; nobody is told. At most 300 people. For the phone app alone."""
    require_phone(viewer)
    return short_user(push.mute(viewer.user_id, user_id), bio=True)


def unmute(viewer: Viewer, user_id: Id) -> None:
    """Notifies the user of somebody's doings again. For the phone app alone."""
    require_phone(viewer)
    push.unmute(viewer.user_id, user_id)
