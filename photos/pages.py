"""A photo's permalink, for people and for sites that embed it: whatever nobody in particular may see.

What is deleted, private, not ready or was never there, all looks the same.
"""

import datetime
import re
from typing import Annotated
from urllib.parse import urlencode, urlsplit

import orjson
from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from pydantic import Field

from accounts.errors import InvalidParameters, NotAllowed, NotFound
from accounts.types import Whole
from accounts.web import content_security_policy, error_page
from photos import services
from photos.imaging import RENDITIONS
from photos.schemas import Embedding, media_for, photo_of_shortcode
from photos.tags import TAG
from shardmap.ids import MAX_ID

PERMALINK = re.compile(r"/p/([A-Za-z0-9_-]+)/?")
SIZES = {"t": "thumbnail", "m": "low_resolution", "l": "standard_resolution"}

Pixels = Annotated[int, Field(ge=1, le=MAX_ID), Whole]


class NothingThere(NotFound):
    """There is no public photo with that permalink."""

    code = 404  # as oEmbed has it


class FormatMissing(InvalidParameters):
    """Another format than JSON is asked for."""

    code = 501  # as oEmbed has it


def photo(request: HttpRequest, code: str) -> HttpResponse:
    """`/p/{code}/`: the page."""
    media = _public_or_404(code)
    response = render(
        request,
        "photos/photo.html",
        {
            "media": media,
            "image": media["images"]["standard_resolution"],
            "smaller": media["images"]["low_resolution"],
            "text": media["caption"]["text"] if media["caption"] else "",
            "caption": _said(media["caption"]) if media["caption"] else None,
            "comments": [_said(comment) for comment in media["comments"]["data"]],
            "taken": _time(media["created_time"]),
            "oembed": f"{settings.SITE_URL}/oembed?{urlencode({'url': media['link']})}",
        },
    )
    response["Content-Security-Policy"] = content_security_policy(
        style="photos/photo.css", images=f"{settings.CDN_URL}/"
    )
    return response


def picture(request: HttpRequest, code: str) -> HttpResponse:
    """`/p/{code}/media/`: to the photo itself; `size` is t, m or l, for 150, 306 and 612 pixels."""
    size = request.GET.get("size", "m")
    if size not in SIZES:
        return error_page(request, 400, "That did not work", "The parameter size is t, m or l.")
    return redirect(_public_or_404(code)["images"][SIZES[size]]["url"])


def oembed(url: str, maxwidth: Pixels = MAX_ID, maxheight: Pixels = MAX_ID, format: str = "json") -> Embedding:
    """What is needed to embed the photo with this permalink (oembed.com, 1.0; as Instagram answered in 2011)."""
    if format != "json":
        raise FormatMissing(f"format: {format!r} is not offered, only json")
    media = _public(_code_of(url))
    if media is None:
        raise NothingThere(f"url: there is no photo at {url!r}")
    most = min(maxwidth, maxheight)
    fitting = [name for name, pixels in RENDITIONS.items() if pixels <= most]
    image, thumbnail = media["images"][(fitting or ["thumbnail"])[-1]], media["images"]["thumbnail"]
    return {
        "version": "1.0",
        "type": "photo",
        "provider_name": "Instagram",
        "provider_url": f"{settings.SITE_URL}/",
        "author_name": media["user"]["username"],
        "author_id": int(media["user"]["id"]),
        "author_url": f"{settings.SITE_URL}/",  # people have no page of their own
        "title": media["caption"]["text"] if media["caption"] else "",
        "media_id": media["id"],
        "url": image["url"],
        # There is nothing smaller than the thumbnail; it is to be shown as small as was asked for.
        "width": min(image["width"], most),
        "height": min(image["height"], most),
        "thumbnail_url": thumbnail["url"],
        "thumbnail_width": min(thumbnail["width"], most),
        "thumbnail_height": min(thumbnail["height"], most),
    }


def _public(code: str) -> dict | None:
    """The photo with this shortcode, as the API has it, if anybody may see it."""
    try:
        photo = services.get(None, photo_of_shortcode(code))
    except (NotFound, NotAllowed):
        return None
    return next((orjson.loads(orjson.dumps(media)) for media in media_for(None, [photo])), None)


def _public_or_404(code: str) -> dict:
    media = _public(code)
    if media is None:
        raise Http404
    return media


def _code_of(url: str) -> str:
    """The shortcode in a permalink of ours; else "", which no photo has."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    ours = parts.scheme in ("http", "https") and parts.netloc.lower() == urlsplit(settings.SITE_URL).netloc
    permalink = PERMALINK.fullmatch(parts.path)
    return permalink[1] if ours and permalink else ""


def _said(comment: dict) -> dict:
    """A caption or a comment for the page: who, when, and its text in pieces, of which each second is a tag."""
    return {
        "username": comment["from"]["username"],
        "time": _time(comment["created_time"]),
        "pieces": TAG.split(comment["text"]),
    }


def _time(created_time: str) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(created_time), datetime.UTC)
