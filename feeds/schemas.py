"""What the activity feed looks like in the API."""

from typing import Literal

from typing_extensions import TypedDict

from accounts.schemas import ShortUser, short_user
from accounts.types import IdText, TimeText
from photos.schemas import Comment, MediaPreview, comment, created_time, media_preview


class Activity(TypedDict):
    """Something that others did: how many of them, and the latest four."""

    id: IdText
    type: Literal["like", "comment", "mention", "follow", "request"]
    created_time: TimeText
    count: int
    users: list[ShortUser]
    media: MediaPreview | None
    comment: Comment | None


def activity(group: dict) -> Activity:
    """A group as `activity.read` returns it."""
    said, users = group["comment"], {user["id"]: short_user(user) for user in group["actors"]}
    return {
        "id": str(group["id"]),
        "type": group["kind"],
        "created_time": created_time(group["id"]),
        "count": group["count"],
        "users": list(users.values()),
        "media": group["photo"] and media_preview(group["photo"]),
        "comment": said and comment(said, users),
    }
