"""What follows from publishing and deleting photos."""

from django.db import transaction

from photos import avatars, comments, friends, likes, places, services, shares, sharing, storage, tags
from photos.cached import MEDIA
from shardmap import cache
from shardmap.shards import shard_transaction
from workers.outbox import enqueue
from workers.registry import job

job("photos.process", queue="urgent")(services.process)
job("photos.mirror_like")(likes.mirror_like)
job("photos.tag")(tags.retag)
job("photos.rank_tag")(tags.rank)
job("photos.place")(places.place)
job("photos.make_avatar", queue="urgent")(avatars.make)
job("photos.drop_avatar")(storage.delete_picture)
job("photos.share")(shares.share)
job("photos.link_changed")(friends.link_changed)
job("photos.find_friends")(friends.find_friends)


@job("photos.refresh", queue="urgent")
def refresh(photo_id: int) -> None:
    """Brings what is cached of a photo up to the truth, if the request that changed it did not get to that."""
    cache.refresh_surely(MEDIA, photo_id)


@job("photos.bury")
def bury(owner_id: int, photo_id: int, upload_id: str) -> None:
    """Removes what a deleted photo has left; of its likes and comments, some at a time."""
    services.bury(owner_id, photo_id, upload_id)
    sharing.bury(owner_id, photo_id)
    left = [some(owner_id, photo_id) for some in (likes.bury_some_of, comments.bury_some_of)]
    if any(left):
        with shard_transaction(owner_id):
            enqueue("photos.bury", owner_id=owner_id, photo_id=photo_id, upload_id=upload_id)


@job("photos.erase")
def erase(user_id: int) -> None:
    """Removes what a deleted user has published, liked and said; some at a time."""
    sharing.unlink_all(user_id)  # first, so that nothing more is posted in the user's name
    avatars.remove(user_id)
    left = [some(user_id) for some in (services.delete_some_of, likes.unlike_some_of, comments.delete_some_of)]
    if any(left):
        with transaction.atomic():
            enqueue("photos.erase", user_id=user_id)
