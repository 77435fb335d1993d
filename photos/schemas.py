"""What a photo looks like in the API."""

import re

from django.conf import settings

from accounts.schemas import short_user
from photos import storage
from photos.imaging import RENDITIONS
from photos.models import Status
from shardmap.ids import time_of_id

TAG = re.compile(r"(?<!\w)#(\w+)")
SHORTCODE_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def media_id(photo: dict) -> str:
    return f"{photo['id']}_{photo['owner_id']}"


def shortcode(photo_id: int) -> str:
    """A photo's ID in base 64, as permalinks have it."""
    code = ""
    while photo_id:
        photo_id, digit = divmod(photo_id, 64)
        code = SHORTCODE_ALPHABET[digit] + code
    return code


def tags_in(caption: str) -> list[str]:
    """The #tags of a caption, in lower case, each once."""
    return list(dict.fromkeys(tag.lower() for tag in TAG.findall(caption)))


def media(photo: dict, owner: dict) -> dict:
    """A photo (a value of the cache's kind MEDIA) and its owner (kind USERS) as the API has it.

    Beside Instagram's fields, `status` (processing, ready, rejected) and `message` (why it was rejected), which only
    its owner ever sees other than "ready".
    """
    user = short_user(owner)
    created_time = str(int(time_of_id(photo["id"]).timestamp()))
    return {
        "id": media_id(photo),
        "type": "image",
        "status": photo["status"],
        "message": photo["message"],
        "user": user,
        "images": _images(photo) if photo["status"] == Status.READY else {},
        "caption": _caption(photo, user, created_time),
        "likes": {"count": 0, "data": []},
        "comments": {"count": 0, "data": []},
        "tags": tags_in(photo["caption"]),
        "filter": photo["filter"],
        "location": _location(photo),
        "link": f"{settings.SITE_URL}/p/{shortcode(photo['id'])}/",
        "created_time": created_time,
        "user_has_liked": False,
        "users_in_photo": [],
        "attribution": None,
    }


def _images(photo: dict) -> dict:
    return {
        name: {"url": storage.cdn_url(photo["upload_id"], name), "width": pixels, "height": pixels}
        for name, pixels in RENDITIONS.items()
    }


def _caption(photo: dict, user: dict, created_time: str) -> dict | None:
    if not photo["caption"]:
        return None
    # A photo has one caption at most, so the photo's ID serves as the caption's.
    return {"id": str(photo["id"]), "text": photo["caption"], "created_time": created_time, "from": user}


def _location(photo: dict) -> dict | None:
    if photo["latitude"] is None:
        return None
    return {"latitude": photo["latitude"], "longitude": photo["longitude"]}
