"""The endpoints about subscriptions, geographies and push."""

from typing import Annotated, Literal

from pydantic import StringConstraints

from accounts.errors import InvalidParameters
from accounts.types import Id
from notifications import schemas, subscriptions
from notifications.subscriptions import client_of
from photos.api import Distance, Latitude, Longitude

VerifyToken = Annotated[str, StringConstraints(max_length=200)]


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
) -> schemas.Subscription:
    client = client_of(client_id, client_secret)
    given = [value for value in (lat, lng, radius) if value is not None]
    if len(given) not in (0, 3):
        raise InvalidParameters("lat: give lat, lng and radius together, for a geography")
    circle = (lat, lng, radius) if given else None
    made = subscriptions.subscribe(client, object, object_id, circle, callback_url, verify_token)
    return schemas.subscription(made)


def list_subscriptions(client_id: str = "", client_secret: str = "") -> list[schemas.Subscription]:
    client = client_of(client_id, client_secret)
    return [schemas.subscription(one) for one in subscriptions.subscriptions_of(client)]


def delete_subscriptions(
    client_id: str = "",
    client_secret: str = "",
    id: Id | None = None,
    object: Literal["all", "user", "tag", "location", "geography"] | None = None,
) -> None:
    subscriptions.unsubscribe(client_of(client_id, client_secret), id, object)
