"""What a user looks like in the API."""

from django.conf import settings


def short_user(user: dict, *, bio: bool = False) -> dict:
    """A user inside other objects, from a value of the cache's kind USERS; with `bio`, as OAuth answers have it."""
    shown = {
        "id": str(user["id"]),
        "username": user["username"],
        "full_name": user["full_name"],
        "profile_picture": user["profile_picture"] or f"{settings.CDN_URL}/anonymous.jpg",
    }
    if bio:
        shown |= {"bio": user["bio"], "website": user["website"]}
    return shown


def full_user(user: dict, counts: dict) -> dict:
    """A profile: the values of the cache's kinds USERS and COUNTS."""
    return short_user(user, bio=True) | {"counts": counts}
