"""The endpoints of the home feed and of the popular page."""

from accounts.tokens import Caller, Viewer
from accounts.types import Count, Cursor
from feeds import popular, services
from photos.schemas import Media, media_for, media_id
from photos.types import MediaId


def home_feed(
    viewer: Viewer, count: Count = 20, max_id: MediaId | None = None, min_id: MediaId | None = None
) -> tuple[list[Media], Cursor]:
    """Your photos and those of whom you follow, latest first."""
    # One more than asked for tells whether there is a next page.
    items = services.read(viewer.user_id, max_id and max_id.photo_id, min_id and min_id.photo_id, count + 1)
    page = items[:count]
    cursor = {"max_id": media_id(page[-1])} if len(items) > count else {}
    return media_for(viewer.user_id, page), cursor


def popular_media(viewer: Caller, count: Count = 20) -> list[Media]:
    """The photos that many like these days."""
    return media_for(viewer.user_id, popular.popular(viewer.user_id, count))
