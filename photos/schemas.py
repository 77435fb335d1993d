"""What a photo looks like in the API. The API's description is made of these types (instagram/api/openapi.py)."""

from collections.abc import Mapping
from functools import cached_property
from operator import is_
from typing import Annotated, Literal

import orjson
from django.conf import settings
from pydantic import Field
from typing_extensions import TypedDict

from accounts.cached import USERS
from accounts.errors import NotFound
from accounts.schemas import ShortUser, User, short_user
from accounts.types import IdText, TimeText
from accounts.visibility import Sight, sight_of
from photos import models, storage
from photos.cached import LIKED, LOCATIONS, liked_among
from photos.imaging import RENDITIONS
from photos.models import Status
from photos.tags import tags_in
from photos.types import MediaIdText
from shardmap import cache
from shardmap.copies import Held
from shardmap.ids import EPOCH_MS, milliseconds_of_id

SHORTCODE_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
LONGEST_SHORTCODE = 11  # 63 bits, 6 each


class Image(TypedDict):
    """A photo at one size, a square."""

    url: str
    width: int
    height: int


class Images(TypedDict, total=False):
    """A photo at three sizes; at none while it is being processed."""

    thumbnail: Image
    low_resolution: Image
    standard_resolution: Image


# "from" is a word of Python's.
Comment = TypedDict("Comment", {"id": IdText, "created_time": TimeText, "text": str, "from": ShortUser})
Comment.__doc__ = "A comment or a caption."


class Likes(TypedDict):
    """How many like a photo, and the latest four of them whom the user who asks may see."""

    count: int
    data: list[ShortUser]


class Comments(TypedDict):
    """How many comments a photo has, and the latest eight of them."""

    count: int
    data: list[Comment]


class Point(TypedDict):
    """Where a photo was taken, at no place that has a name."""

    latitude: float
    longitude: float


class Location(Point):
    """A place."""

    id: IdText
    name: str


class MediaPreview(TypedDict):
    """What it takes to show a photo, and to link to it."""

    id: MediaIdText
    link: str
    images: Images


class Tag(TypedDict):
    """A tag, without its #."""

    name: str
    media_count: int


class ShareAccount(TypedDict):
    """An account at another service, and its name there."""

    service: Literal["twitter", "facebook"]
    username: str
    status: Annotated[
        Literal["linked", "broken"],
        Field(description="Broken: the service lets us in no longer, so the account has to be linked again"),
    ]


class Share(TypedDict):
    """How the sharing of a photo at another service is going."""

    service: Literal["twitter", "facebook"]
    status: Literal["waiting", "posting", "shared", "failed"]
    post_id: Annotated[str, Field(description="What the service calls it, once it is shared")]
    message: Annotated[str, Field(description="Why it failed")]


class Upload(TypedDict):
    """A form for one photo: POST `fields` and then the photo, as `file`, to `url` as multipart/form-data."""

    upload_id: str
    url: str
    fields: dict[str, str]
    expires_at: TimeText


class Avatar(TypedDict):
    """The user with the avatar that is shown now, and how the last change of it has gone."""

    status: Annotated[
        Literal["none", "processing", "ready", "rejected"],
        Field(description="While it is not ready, the user keeps the picture of before"),
    ]
    message: Annotated[str, Field(description="Why it was rejected")]
    user: User


class Media(TypedDict):
    """A photo."""

    id: MediaIdText
    type: Literal["image"]
    status: Annotated[
        Literal["processing", "ready", "rejected"],
        Field(description="Nobody but its owner sees a photo that is not ready"),
    ]
    message: Annotated[str, Field(description="Why it was rejected")]
    user: ShortUser
    images: Images
    caption: Comment | None
    likes: Likes
    comments: Comments
    tags: list[str]
    filter: str
    location: Location | Point | None
    link: str
    created_time: TimeText
    user_has_liked: bool
    users_in_photo: Annotated[list, Field(description="Always empty")]
    attribution: None


class Embedding(TypedDict):
    """A photo as oEmbed has it. Sizes are in pixels, and no larger than was asked for."""

    version: str
    type: str
    provider_name: str
    provider_url: str
    author_name: str
    author_id: int
    author_url: str
    title: str
    media_id: str
    url: str
    width: int
    height: int
    thumbnail_url: str
    thumbnail_width: int
    thumbnail_height: int


def media_id(photo: dict) -> str:
    return f"{photo['id']}_{photo['owner_id']}"


def shortcode(photo_id: int) -> str:
    """A photo's ID in base 64, as permalinks have it."""
    code = ""
    while photo_id:
        photo_id, digit = divmod(photo_id, 64)
        code = SHORTCODE_ALPHABET[digit] + code
    return code


def photo_of_shortcode(code: str) -> int:
    """The photo's ID; 0, which no photo has, for what cannot be a shortcode."""
    photo_id = 0
    if len(code) > LONGEST_SHORTCODE:
        return 0
    for character in code:
        digit = SHORTCODE_ALPHABET.find(character)
        if digit < 0:
            return 0
        photo_id = photo_id * 64 + digit
    return photo_id


def media_for(viewer_id: int | None, photos: list[dict]) -> list[Media]:
    """Photos (values of the cache's kind MEDIA, which the viewer may see) as the API has them, in their order.

    Beside Instagram's fields, `status` (processing, ready, rejected) and `message` (why it was rejected), which only
    its owner ever sees other than "ready". Likers and commenters whom the viewer may not know of are left out. Each is
    an `orjson.Fragment`: JSON that is ready to be sent.
    """
    held = cache.held(USERS), cache.held(LOCATIONS)
    made = {photo["id"]: getattr(photo, "rendering", None) for photo in photos}
    stale = [photo for photo in photos if not (one := made[photo["id"]]) or not one.is_of(*held)]
    users, locations, liked, *sight = cache.fetch(
        (USERS, {user_id for photo in stale for user_id in _people_in(photo)}),
        (LOCATIONS, {photo["location_id"] for photo in stale} - {None}),
        (LIKED, [] if viewer_id is None else [viewer_id]),
        *sight_of(viewer_id),
    )
    for photo in stale:
        made[photo["id"]] = photo.rendering = _Rendering(photo, users, locations)
    if hidden := Sight.of(viewer_id, *sight).hidden:
        made = {photo_id: one.without(hidden) for photo_id, one in made.items()}
    likes = () if viewer_id is None else liked_among(viewer_id, list(made), liked[viewer_id])
    return [one.json[photo_id in likes] for photo_id, one in made.items() if one.is_shown]


class _Rendering:
    """The JSON of a photo, and what it was made of: values of the cache, which are the same objects until they change.

    Most of those who read a photo see the same of it, so it is made anew only when something in it has changed.
    """

    def __init__(self, photo: dict, users: Mapping[int, dict], locations: Mapping[int, dict]) -> None:
        self._photo, self._location = photo, locations.get(photo["location_id"])
        self._people = _people_in(photo)
        self._users = [users.get(user_id) for user_id in self._people]
        self._is_complete = None not in self._users
        self._checked: tuple[int, int] | None = None
        self.is_shown = self._users[0] is not None  # the owner

    def is_of(self, users: Held, locations: Held) -> bool:
        """Whether this is still how the photo looks, as far as this process has copies of what is in it."""
        now = users.dropped, locations.dropped
        if self._checked != now and (
            self._is_complete  # who was gone may be back
            and all(map(is_, map(users.get, self._people), self._users))
            and locations.get(self._photo["location_id"]) is self._location
        ):
            self._checked = now  # people change seldom, and then each photo is looked at once more
        return self._checked == now

    def without(self, hidden: frozenset[int]) -> "_Rendering":
        """How a viewer sees it from whom some people are hidden."""
        if hidden.isdisjoint(self._people):
            return self
        users = {user["id"]: user for user in self._users if user and user["id"] not in hidden}
        return _Rendering(self._photo, users, {self._photo["location_id"]: self._location})

    @cached_property
    def json(self) -> tuple[orjson.Fragment, orjson.Fragment]:
        """For who does not like it, and for who does."""
        users = {user["id"]: short_user(user) for user in self._users if user}
        media = _media(self._photo, users, self._location)
        texts = [orjson.dumps(media | {"user_has_liked": has_liked}) for has_liked in (False, True)]
        return orjson.Fragment(texts[0]), orjson.Fragment(texts[1])


def _people_in(photo: dict) -> tuple[int, ...]:
    """The owner, the likers and the commenters."""
    return photo["owner_id"], *photo["likers"], *(comment["user_id"] for comment in photo["latest_comments"])


def media_of(viewer_id: int | None, photo: dict) -> Media:
    """One photo. Raises NotFound when its owner has left, or blocked the viewer, since it was read."""
    for media in media_for(viewer_id, [photo]):
        return media
    raise NotFound(f"there is no media {photo['id']}")


def _media(photo: dict, users: dict[int, ShortUser], place: dict | None) -> Media:
    user = users[photo["owner_id"]]
    return {
        "id": media_id(photo),
        "type": "image",
        "status": photo["status"],
        "message": photo["message"],
        "user": user,
        "images": _images(photo["upload_id"]) if photo["status"] == Status.READY else {},
        "caption": _caption(photo, user),
        "likes": {"count": photo["likes"], "data": [users[one] for one in photo["likers"] if one in users]},
        "comments": {
            "count": photo["comments"],
            "data": [comment(said, users) for said in photo["latest_comments"] if said["user_id"] in users],
        },
        "tags": list(dict.fromkeys((*tags_in(photo["caption"]), *photo["tags"]))),
        "filter": photo["filter"],
        "location": _location(photo, place),
        "link": link_of(photo["id"]),
        "created_time": created_time(photo["id"]),
        "user_has_liked": False,
        "users_in_photo": [],
        "attribution": None,
    }


def media_preview(photo: dict) -> MediaPreview:
    """What it takes to show a photo and to link to it."""
    return {"id": media_id(photo), "link": link_of(photo["id"]), "images": _images(photo["upload_id"])}


def comment(said: dict, users: dict[int, ShortUser]) -> Comment:
    """A comment, {id, user_id, text}, as the API has it; `users` are short users."""
    return {
        "id": str(said["id"]),
        "created_time": created_time(said["id"]),
        "text": said["text"],
        "from": users[said["user_id"]],
    }


def tag(name: str, media_count: int) -> Tag:
    return {"name": name, "media_count": media_count}


def share_account(account: models.ShareAccount) -> ShareAccount:
    status = "broken" if account.is_broken else "linked"
    return {"service": account.service, "username": account.username, "status": status}


def share(one: models.Share) -> Share:
    return {"service": one.service, "status": one.status, "post_id": one.post_id, "message": one.message}


def created_time(some_id: int) -> str:
    """When what has this ID was made: Unix time in seconds."""
    return str((milliseconds_of_id(some_id) + EPOCH_MS) // 1000)


def link_of(photo_id: int) -> str:
    """A photo's permalink."""
    return f"{settings.SITE_URL}/p/{shortcode(photo_id)}/"


def _images(upload_id: str) -> Images:
    return {
        name: {"url": storage.cdn_url(upload_id, name), "width": pixels, "height": pixels}
        for name, pixels in RENDITIONS.items()
    }


def _caption(photo: dict, user: ShortUser) -> Comment | None:
    if not photo["caption"]:
        return None
    # A photo has one caption at most, so the photo's ID serves as the caption's.
    return {
        "id": str(photo["id"]),
        "text": photo["caption"],
        "created_time": created_time(photo["id"]),
        "from": user,
    }


def _location(photo: dict, place: dict | None) -> Location | Point | None:
    if photo["latitude"] is None:
        return None
    return location(place) if place else {"latitude": photo["latitude"], "longitude": photo["longitude"]}


def location(place: dict) -> Location:
    """A place (a value of the cache's kind LOCATIONS) as the API has it."""
    return place | {"id": str(place["id"])}
