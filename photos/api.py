"""The endpoints about photos. Their docstrings are the API's reference (/developer/)."""

import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from accounts.errors import InvalidParameters
from accounts.schemas import ShortUser, short_user
from accounts.services import user
from accounts.tokens import Caller, Viewer, require_phone
from accounts.types import Count, Cursor, Id, Timestamp, Whole
from photos import avatars, comments, likes, places, schemas, services, shares, sharing, storage, tags
from photos.schemas import (
    Avatar,
    Comment,
    Location,
    Media,
    Share,
    ShareAccount,
    Tag,
    Upload,
    media_for,
    media_of,
    photo_of_shortcode,
)
from photos.types import MediaId, MediaRef
from shardmap.ids import MAX_ID, first_id_at

Caption = Annotated[str, StringConstraints(max_length=2200)]
Latitude = Annotated[float, Field(ge=-90, le=90, allow_inf_nan=False)]
Distance = Annotated[int, Field(ge=1, le=places.FARTHEST), Whole]  # metres
Foursquare = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z]{1,32}$")]
Service = Literal["twitter", "facebook"]
Credential = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,1000}$")]
Longitude = Annotated[float, Field(ge=-180, le=180, allow_inf_nan=False)]


def create_upload(viewer: Viewer, content_type: str = "image/jpeg") -> Upload:
    """A place to upload one photo to: a form that is sent to S3 rather than to us.

    When S3 has answered 204, `POST /v1/media` makes a photo of it.
    """
    expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=storage.PRESIGNED_SECONDS)
    return services.create_upload(viewer.user_id, content_type) | {"expires_at": str(int(expires.timestamp()))}


def publish(
    viewer: Viewer,
    upload_id: str,
    caption: Caption = "",
    filter: Annotated[str, StringConstraints(max_length=30)] = "Normal",
    latitude: Latitude | None = None,
    longitude: Longitude | None = None,
    location_id: Id | None = None,
    location_name: Annotated[str, StringConstraints(max_length=100)] | None = None,
    foursquare_v2_id: Foursquare | None = None,
    share_to: Annotated[list[Service], Field(max_length=10)] | None = None,
) -> Media:
    """Makes a photo of what was uploaded.

    Its `status` is "processing" for some seconds, and nobody else sees it meanwhile. To ask again with the same
    `upload_id` is safe, and answers with the same photo. `share_to` is for the phone app alone.
    """
    if share_to:
        require_phone(viewer)
    photo = services.publish(
        viewer.user_id,
        upload_id,
        caption,
        filter,
        latitude,
        longitude,
        location_id,
        location_name,
        foursquare_v2_id,
        share_to or (),
    )
    return media_of(viewer.user_id, photo)


def change_avatar(viewer: Viewer, upload_id: str) -> Avatar:
    """Makes your avatar of what was uploaded, a square of 150 pixels.

    Its `status` is "processing" for some seconds; `GET` tells what has become of it. What is no picture changes
    nothing. To ask again with the same `upload_id` is safe. For the phone app alone.
    """
    require_phone(viewer)
    avatars.change(viewer.user_id, upload_id)
    return get_avatar(viewer)


def get_avatar(viewer: Viewer) -> Avatar:
    """Your avatar. For the phone app alone."""
    require_phone(viewer)
    status, message = avatars.state(viewer.user_id)
    return {
        "status": status,
        "message": message,
        "user": short_user(user(viewer.user_id), bio=True),
    }


def remove_avatar(viewer: Viewer) -> Avatar:
    """Removes your avatar; you have the default picture again. For the phone app alone."""
    require_phone(viewer)
    avatars.remove(viewer.user_id)
    return get_avatar(viewer)


def get_media(viewer: Caller, media_id: MediaId) -> Media:
    """A photo."""
    return media_of(viewer.user_id, services.get(viewer.user_id, *media_id))


def get_media_by_shortcode(viewer: Caller, code: str) -> Media:
    """A photo, by the code in its link: `D` in `/p/D/`."""
    return media_of(viewer.user_id, services.get(viewer.user_id, photo_of_shortcode(code)))


def edit_media(viewer: Viewer, media_id: MediaId, caption: Caption = "") -> Media:
    """Changes the caption of a photo of yours, and with it the photo's tags."""
    return media_of(viewer.user_id, services.edit_caption(viewer.user_id, *media_id, caption))


def delete_media(viewer: Viewer, media_id: MediaId) -> None:
    """Deletes a photo of yours."""
    services.delete(viewer.user_id, *media_id)


def recent_media(
    viewer: Caller,
    user_id: Id,
    count: Count = 20,
    max_id: MediaId | None = None,
    min_id: MediaId | None = None,
    max_timestamp: Timestamp | None = None,
    min_timestamp: Timestamp | None = None,
) -> tuple[list[Media], Cursor]:
    """A user's photos, latest first."""
    below, above = _bounds(max_timestamp, min_timestamp, max_id, min_id)
    photos, last_id = services.recent_of(viewer.user_id, user_id, below, above, count)
    return media_for(viewer.user_id, photos), {} if last_id is None else {"max_id": f"{last_id}_{user_id}"}


def liked_media(viewer: Viewer, count: Count = 20, max_like_id: Id = MAX_ID) -> tuple[list[Media], Cursor]:
    """The photos that you like, latest like first."""
    photos, next_id = likes.liked_by(viewer.user_id, max_like_id, count)
    return media_for(viewer.user_id, photos), {} if next_id is None else {"max_like_id": str(next_id)}


def get_likes(
    viewer: Caller, media_id: MediaId, count: Count = 20, cursor: Id = MAX_ID
) -> tuple[list[ShortUser], Cursor]:
    """Who likes a photo, latest like first."""
    users, next_cursor = likes.likers_of(viewer.user_id, *media_id, cursor, count)
    return [short_user(user) for user in users], {} if next_cursor is None else {"cursor": str(next_cursor)}


def like(viewer: Viewer, media_id: MediaId) -> None:
    """Likes a photo; to do it again changes nothing."""
    likes.like(viewer.user_id, *media_id)


def unlike(viewer: Viewer, media_id: MediaId) -> None:
    """Takes a like back; to do it again changes nothing."""
    likes.unlike(viewer.user_id, *media_id)


def get_comments(
    viewer: Caller, media_id: MediaId, count: Count = 20, cursor: Id = MAX_ID
) -> tuple[list[Comment], Cursor]:
    """The latest comments on a photo, oldest of them first. The next page has those before them."""
    said, users, next_cursor = comments.comments_on(viewer.user_id, media_id, cursor, count)
    authors = {user_id: short_user(user) for user_id, user in users.items()}
    shown = [schemas.comment(one, authors) for one in said]
    return shown, {} if next_cursor is None else {"cursor": str(next_cursor)}


def comment(viewer: Viewer, media_id: MediaId, text: str) -> Comment:
    """Comments on a photo."""
    said = comments.comment(viewer.user_id, media_id, text)
    return schemas.comment(said, {viewer.user_id: short_user(user(viewer.user_id))})


def delete_comment(viewer: Viewer, media_id: MediaId, comment_id: Id) -> None:
    """Deletes a comment: one of yours, or any on a photo of yours."""
    comments.delete_comment(viewer.user_id, media_id, comment_id)


def get_tag(viewer: Caller, name: str) -> Tag:
    """A tag."""
    return schemas.tag(*tags.get_tag(name))


def tagged_media(
    viewer: Caller, name: str, count: Count = 20, max_tag_id: Id = MAX_ID, min_tag_id: Id = 0
) -> tuple[list[Media], Cursor]:
    """The photos under a tag, latest tagging first."""
    photos, first, last = tags.media_of(viewer.user_id, name, max_tag_id, min_tag_id, count)
    cursor = {"min_tag_id": first, "max_tag_id": last}
    return media_for(viewer.user_id, photos), {name: str(since) for name, since in cursor.items() if since is not None}


def search_tags(viewer: Caller, q: str, count: Count = 20) -> list[Tag]:
    """Tags that begin with `q`: that very tag first, then by their number of photos."""
    return [schemas.tag(*found) for found in tags.search(q, count)]


def _bounds(
    max_timestamp: int | None, min_timestamp: int | None, max_id: MediaRef | None = None, min_id: MediaRef | None = None
) -> tuple[int, int]:
    """The IDs between which the wished photos are: (below, above), neither included."""
    below, above = max_id.photo_id if max_id else MAX_ID, min_id.photo_id if min_id else 0
    if max_timestamp is not None:
        below = min(below, first_id_at(max_timestamp + 1))
    if min_timestamp is not None:
        above = max(above, first_id_at(min_timestamp) - 1)
    return below, above


def search_media(
    viewer: Caller,
    lat: Latitude,
    lng: Longitude,
    distance: Distance = 1000,
    min_timestamp: Timestamp | None = None,
    max_timestamp: Timestamp | None = None,
    count: Count = 20,
) -> list[Media]:
    """Photos taken near a point, latest first. Ask for older ones with `max_timestamp`."""
    bounds = _bounds(max_timestamp, min_timestamp)
    photos, _ = places.media_near(viewer.user_id, lat, lng, distance, *bounds, count)
    return media_for(viewer.user_id, photos)


def get_location(viewer: Caller, location_id: Id) -> Location:
    """A place."""
    return schemas.location(places.get_location(location_id))


def search_locations(
    viewer: Caller,
    lat: Latitude | None = None,
    lng: Longitude | None = None,
    distance: Distance = 1000,
    foursquare_v2_id: Foursquare | None = None,
    count: Count = 20,
) -> list[Location]:
    """Places near a point, nearest first; or the place that has an ID on Foursquare."""
    if foursquare_v2_id is not None:
        found = places.location_of_foursquare(foursquare_v2_id)
    elif lat is None or lng is None:
        raise InvalidParameters("lat: give lat and lng, or foursquare_v2_id")
    else:
        found = places.locations_near(lat, lng, distance, count)
    return [schemas.location(place) for place in found]


def location_media(
    viewer: Caller,
    location_id: Id,
    count: Count = 20,
    max_id: MediaId | None = None,
    min_id: MediaId | None = None,
    max_timestamp: Timestamp | None = None,
    min_timestamp: Timestamp | None = None,
) -> tuple[list[Media], Cursor]:
    """Photos taken at a place, latest first."""
    below, above = _bounds(max_timestamp, min_timestamp, max_id, min_id)
    photos, last_id = places.media_at(viewer.user_id, location_id, below, above, count)
    return media_for(viewer.user_id, photos), {} if last_id is None else {"max_id": str(last_id)}


def get_share_accounts(viewer: Viewer) -> list[ShareAccount]:
    """Your accounts at other services, to which photos can be shared. For the phone app alone."""
    require_phone(viewer)
    return [schemas.share_account(account) for account in sharing.linked(viewer.user_id)]


def link_share_account(
    viewer: Viewer,
    service: Service,
    username: Annotated[str, StringConstraints(min_length=1, max_length=100)],
    token: Credential,
    secret: Credential | None = None,
) -> ShareAccount:
    """Links your account at another service, by what that service gave you: an OAuth token, and its secret if any.

    For the phone app alone.
    """
    require_phone(viewer)
    return schemas.share_account(sharing.link(viewer.user_id, service, username, token, secret))


link_share_account.limited_as = "links"


def unlink_share_account(viewer: Viewer, service: Service) -> None:
    """Forgets your account at another service. For the phone app alone."""
    require_phone(viewer)
    sharing.unlink(viewer.user_id, service)


def share_media(
    viewer: Viewer, media_id: MediaId, share_to: Annotated[list[Service], Field(min_length=1, max_length=10)]
) -> list[Share]:
    """Shares a photo of yours at other services, where you have linked an account; again where that failed.

    Returns all shares of the photo. For the phone app alone.
    """
    require_phone(viewer)
    return [schemas.share(one) for one in shares.share_later(viewer.user_id, media_id, share_to)]


def get_shares(viewer: Viewer, media_id: MediaId) -> list[Share]:
    """How the sharing of a photo of yours is going. For the phone app alone."""
    require_phone(viewer)
    return [schemas.share(one) for one in shares.shares_of(viewer.user_id, media_id)]
