"""The endpoints of the home feed, of the popular page and of the activity."""

from collections.abc import Sequence

from accounts.tokens import Caller, Viewer
from accounts.types import Count, Cursor, Id
from feeds import activity, home, popular, schemas, services
from photos.schemas import Media, media_for, media_id
from photos.types import MediaId
from shardmap.ids import MAX_ID
from shardmap.redis_client import Command


def home_feed(
    viewer: Viewer, count: Count = 20, max_id: MediaId | None = None, min_id: MediaId | None = None
) -> tuple[list[Media], Cursor]:
    """Your photos and those of whom you follow, latest first."""
    # One more than asked for tells whether there is a next page.
    items = services.read(viewer.user_id, max_id and max_id.photo_id, min_id and min_id.photo_id, count + 1)
    page = items[:count]
    cursor = {"max_id": media_id(page[-1])} if len(items) > count else {}
    return media_for(viewer.user_id, page), cursor


def _foresee_home_feed(viewer_id: int, params: dict[str, str]) -> Sequence[Command]:
    count = params.get("count", "20")
    is_first = "max_id" not in params and str(count).isdecimal()
    return home.page_commands(viewer_id, None, int(str(count)[:3]) + 1) if is_first else ()


home_feed.foresee = _foresee_home_feed


def popular_media(viewer: Caller, count: Count = 20) -> list[Media]:
    """The photos that many like these days."""
    return media_for(viewer.user_id, popular.popular(viewer.user_id, count))


def get_activity(viewer: Viewer, count: Count = 20, cursor: Id = MAX_ID) -> tuple[list[schemas.Activity], Cursor]:
    """What others did that concerns you, newest first; likes on one photo come together."""
    groups, next_cursor = activity.read(viewer.user_id, cursor, count)
    return [schemas.activity(group) for group in groups], {} if next_cursor is None else {"cursor": str(next_cursor)}
