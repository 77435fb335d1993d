"""What follows from new photos, from what happened to somebody, and from deleted accounts."""

from notifications import push, tell, updates
from workers.registry import job

job("notifications.placed")(updates.placed)
job("notifications.tagged")(updates.tagged)
job("notifications.deliver")(updates.deliver)
job("notifications.tell")(tell.tell)
job("notifications.approved")(tell.approved)
job("notifications.friend_joined")(tell.friend_joined)
job("notifications.link_broken")(tell.link_broken)
job("notifications.first_photo_chunk")(tell.first_photo_chunk)
job("notifications.first_photo")(tell.first_photo)
job("notifications.send_again")(tell.send_again)
job("notifications.erase")(push.erase)


@job("notifications.published")
def published(owner_id: int, photo_id: int) -> None:
    updates.published(owner_id, photo_id)
    tell.published(owner_id, photo_id)
