"""What subscriptions and push look like in the API."""

from typing import Literal

from django.forms.models import model_to_dict
from typing_extensions import TypedDict

from accounts.types import IdText
from notifications import models
from notifications.models import Object

Wish = Literal["off", "following", "everyone"]


class Subscription(TypedDict):
    """A subscription to new photos."""

    id: IdText
    type: Literal["subscription"]
    object: Literal["user", "tag", "location", "geography"]
    object_id: str | None
    aspect: Literal["media"]
    callback_url: str


class Device(TypedDict):
    """A phone that gets notifications."""

    token: str
    environment: Literal["production", "sandbox"]


class PushSettings(TypedDict):
    """Whose doings a user is notified of, and when not."""

    likes: Wish
    comments: Wish
    mentions: Wish
    follows: Wish
    follow_requests: Wish
    first_photos: Wish
    friends_joined: Wish
    quiet_from: str
    quiet_to: str
    time_zone: str
    language: str


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


def device(one: models.Device) -> Device:
    return {"token": one.token, "environment": one.environment}


def push_settings(one: models.PushSettings) -> PushSettings:
    return model_to_dict(one, exclude=["user_id"])
