"""What a user looks like in the API. The API's description is made of these types (instagram/api/openapi.py)."""

from typing import Literal

from django.conf import settings
from typing_extensions import TypedDict

from accounts.types import IdText


class ShortUser(TypedDict):
    """A user inside other objects."""

    id: IdText
    username: str
    full_name: str
    profile_picture: str


class User(ShortUser):
    """A user in lists of people."""

    bio: str
    website: str


class Counts(TypedDict):
    """How many photos a user has, and how many people the user follows, and is followed by."""

    media: int
    follows: int
    followed_by: int


class Profile(User):
    """A user."""

    counts: Counts


class NewToken(TypedDict):
    """A new access token."""

    access_token: str


class Login(NewToken):
    """A new access token, and whose it is."""

    user: User


class Relationship(TypedDict):
    """How the user who asks and another one stand to each other."""

    outgoing_status: Literal["none", "follows", "requested"]
    incoming_status: Literal["none", "followed_by", "requested_by", "blocked_by_you"]
    target_user_is_private: bool


def short_user(user: dict, *, bio: bool = False) -> ShortUser:
    """A user inside other objects, from a value of the cache's kind USERS; with `bio`, a `User`."""
    shown = {
        "id": str(user["id"]),
        "username": user["username"],
        "full_name": user["full_name"],
        "profile_picture": f"{settings.CDN_URL}/{user['profile_picture'] or 'anonymous.jpg'}",
    }
    return shown | {"bio": user["bio"], "website": user["website"]} if bio else shown


def full_user(user: dict, counts: dict) -> Profile:
    """A profile: the values of the cache's kinds USERS and COUNTS."""
    return short_user(user, bio=True) | {"counts": counts}
