"""What subscriptions look like in the API."""

from typing_extensions import TypedDict

from notifications import models
from notifications.models import Object


class Subscription(TypedDict):
    id: str
    type: str
    object: str
    object_id: str | None
    aspect: str
    callback_url: str


def subscription(one: models.Subscription) -> Subscription:
    return {
        "id": str(one.id),
        "type": "subscription",
        "object": one.object,
        "object_id": object_id(one),
        "aspect": "media",
        "callback_url": one.callback.url,
    }


def object_id(one: models.Subscription) -> str | None:
    """The tag's name, or the ID of the location or the geography; None for users."""
    return str(one.id) if one.object == Object.GEOGRAPHY else one.target or None
