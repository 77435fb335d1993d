"""What is worth a push, to whom, and what it says. See docs/notifications.md.

Each verb is a job. It looks at what is true now, so nobody is told of what is gone, undone, or not to be seen; and a
job that runs again sends the same notifications, under the same IDs.
"""

import datetime
import logging
import time
import uuid
from typing import NamedTuple
from zoneinfo import ZoneInfo

from django.db import transaction
from django.utils import timezone

from accounts import graph
from accounts.cached import EDGES
from accounts.schemas import short_user
from accounts.visibility import known
from feeds import activity
from notifications import coalescing
from notifications.models import Audience, Device, Environment, FriendTold, PushSettings
from notifications.push import devices_of, remove, settings_of, wishes_about
from notifications.pyapns import client
from notifications.pyapns.apns import DEAD, UNDELIVERED
from notifications.texts import text
from photos.cached import MEDIA
from photos.likes import likes_of
from photos.networks import NETWORKS
from photos.schemas import media_id, media_preview
from photos.services import is_first
from photos.sharing import linked
from photos.visible import seen
from shardmap import cache
from shardmap.shards import on_shard, shard_transaction
from workers.outbox import enqueue_in, enqueue_many

logger = logging.getLogger(__name__)

CHUNK = 2000  # followers of whom one job looks who has a phone
EXPIRES = 24 * 3600  # a phone that was off for longer is not told
LATER = datetime.timedelta(hours=1)  # what comes in quiet hours, and must be told, is looked at again
# Of our notifications' IDs; any will do, as long as it stays.
NAMESPACE = uuid.UUID("5f0b6d6e-8f0e-4f4c-9a55-1d3b8e0f7c21")
# Which of a user's wishes is about what.
WISHES = {
    "like": "likes",
    "comment": "comments",
    "mention": "mentions",
    "follow": "follows",
    "request": "follow_requests",
    "approval": "follow_requests",
    "first_photo": "first_photos",
    "friend_joined": "friends_joined",
}


class Push(NamedTuple):
    """A notification for all the phones of a user, as the pyapns service takes it."""

    user_id: int
    event: str  # what it is about: the same when the job runs again
    payload: dict


def tell(user_id: int, activity_id: int) -> None:
    """Tells a user's phones of a row of the user's activity."""
    if (devices := devices_of(user_id)) and (push := push_of_activity(user_id, activity_id)):
        _send(devices, push)


def approved(follower_id: int, followee_id: int) -> None:
    """Tells who asked to follow somebody that this was granted."""
    if (devices := devices_of(follower_id)) and (push := push_of_approval(follower_id, followee_id)):
        _send(devices, push)


def friend_joined(user_id: int, friend_id: int, service: str) -> None:
    """Tells a user, once, that a friend at another service is here."""
    if (devices := devices_of(user_id)) and (push := push_of_friend(user_id, friend_id, service)):
        _send(devices, push)
        with on_shard(user_id):
            FriendTold.objects.get_or_create(user_id=user_id, friend_id=friend_id)


def link_broken(user_id: int, service: str) -> None:
    """Tells a user that a service lets us into the linked account no longer; not in quiet hours, but after them."""
    if is_quiet(settings_of(user_id), timezone.now()):
        with shard_transaction(user_id):
            enqueue_in(LATER, "notifications.link_broken", user_id=user_id, service=service)
    elif (devices := devices_of(user_id)) and (push := push_of_broken_link(user_id, service)):
        _send(devices, push)


def published(owner_id: int, photo_id: int) -> None:
    """Writes the jobs that tell the followers of a photo, if it is its owner's first."""
    if is_first(owner_id, photo_id):
        # Those jobs must not take what was cached before it was ready for the truth: nobody would be told, ever.
        cache.refresh_surely(MEDIA, photo_id)
        what = {"owner_id": owner_id, "photo_id": photo_id}
        ranges = graph.follower_chunks(owner_id, CHUNK)
        with shard_transaction(owner_id):
            enqueue_many("notifications.first_photo_chunk", [what | {"first": a, "last": b} for a, b in ranges])


def first_photo_chunk(owner_id: int, photo_id: int, first: int, last: int) -> None:
    """Writes a job for each follower of one range who has a phone: should one fail, the others are not told again."""
    phones = Device.objects.filter(user__in=graph.followers_between(owner_id, first, last))
    user_ids = set(phones.values_list("user_id", flat=True))
    what = {"owner_id": owner_id, "photo_id": photo_id}
    with shard_transaction(owner_id):
        enqueue_many("notifications.first_photo", [what | {"user_id": user_id} for user_id in user_ids])


def first_photo(user_id: int, owner_id: int, photo_id: int) -> None:
    """Tells a follower's phones of a first photo."""
    if (devices := devices_of(user_id)) and (push := push_of_first_photo(user_id, owner_id, photo_id)):
        _send(devices, push)


def push_of_activity(user_id: int, activity_id: int) -> Push | None:
    """What to say of a row of a user's activity, if anything."""
    group = activity.happened(user_id, activity_id)
    if group is None or not (wishes := _wishes(user_id, group["kind"], group["actors"][0]["id"])):
        return None
    if group["kind"] == "follow" and _lets_in(user_id):
        return None
    others = coalescing.others(user_id, group)
    if others is None:
        return None
    actor, photo, comment = group["actors"][0], group["photo"], group["comment"]
    if others and group["kind"] == "like":  # of which some may have been taken back
        others = max(0, min(others, likes_of(user_id, photo["id"]) - 1))
    said = comment["text"] if comment else photo["caption"] if photo else ""
    body = text(group["kind"], wishes.language, actor["username"], others, said)
    payload = _payload(group["kind"], body, actor, photo, comment)
    payload["aps"]["badge"] = group["unread"]
    return Push(user_id, f"activity {activity_id}", payload)


def push_of_approval(follower_id: int, followee_id: int) -> Push | None:
    """What to say to who was let in, unless the follow has ended since."""
    people = known(follower_id, [followee_id])
    is_following, version = graph.follows(follower_id, followee_id)
    if not is_following or followee_id not in people:
        return None
    if not (wishes := _wishes(follower_id, "approval", followee_id)):
        return None
    body = text("approval", wishes.language, people[followee_id]["username"])
    event = f"approval {follower_id} {followee_id} {version}"
    return Push(follower_id, event, _payload("approval", body, people[followee_id]))


def push_of_first_photo(user_id: int, owner_id: int, photo_id: int) -> Push | None:
    """What to say to a follower of a first photo."""
    photos, people = seen(user_id, [(photo_id, owner_id)]), known(user_id, [owner_id])
    if not photos or owner_id not in people or not (wishes := _wishes(user_id, "first_photo", owner_id)):
        return None
    body = text("first_photo", wishes.language, people[owner_id]["username"])
    return Push(user_id, f"first_photo {photo_id}", _payload("first_photo", body, people[owner_id], photos[0]))


def push_of_friend(user_id: int, friend_id: int, service: str) -> Push | None:
    """What to say of a friend who has linked an account, unless the two know each other here, or were told."""
    people = known(user_id, [friend_id])
    if friend_id not in people or not (wishes := _wishes(user_id, "friend_joined", friend_id)):
        return None
    with on_shard(user_id):
        is_told = FriendTold.objects.filter(user_id=user_id, friend_id=friend_id).exists()
    is_linked = service in [account.service for account in linked(friend_id)]
    if is_told or not is_linked or (graph.follows(user_id, friend_id)[0] and graph.follows(friend_id, user_id)[0]):
        return None
    body = text("friend_joined", wishes.language, people[friend_id]["username"], said=NETWORKS[service].title)
    return Push(user_id, f"friend_joined {friend_id}", _payload("friend_joined", body, people[friend_id]))


def push_of_broken_link(user_id: int, service: str) -> Push | None:
    """What to say of an account at another service, unless it was linked again, or unlinked, since."""
    wishes, people = settings_of(user_id), known(user_id, [user_id])
    account = next((one for one in linked(user_id) if one.service == service and one.is_broken), None)
    if account is None or user_id not in people:
        return None
    payload = _payload("link_broken", text("link_broken", wishes.language, NETWORKS[service].title), people[user_id])
    payload["link"], payload["apns"]["collapse-id"] = "instagram://shares", f"link_broken:{service}"
    return Push(user_id, f"link_broken {account.credentials}", payload)


def is_quiet(wishes: PushSettings, now: datetime.datetime) -> bool:
    """Whether it is one of the user's quiet hours. They may go past midnight."""
    start, end = wishes.quiet_from, wishes.quiet_to
    local = f"{now.astimezone(ZoneInfo(wishes.time_zone)):%H:%M}"
    return start <= local < end if start <= end else not end <= local < start


def _wishes(user_id: int, kind: str, actor_id: int) -> PushSettings | None:
    """The user's settings, if they let this kind of thing through now, done by that actor."""
    wishes = wishes_about(user_id, actor_id)
    if wishes is None or is_quiet(wishes, timezone.now()):
        return None
    audience = getattr(wishes, WISHES[kind])
    if audience == Audience.FOLLOWING:
        (edges,) = cache.fetch((EDGES, [user_id]))
        return wishes if actor_id in edges[user_id]["follows"] else None
    return wishes if audience == Audience.EVERYONE else None


def _lets_in(user_id: int) -> bool:
    """Whether the account is private, so that its user knows of each follow: it was the user who allowed it."""
    return any(user["is_private"] for user in known(user_id, [user_id]).values())


def _payload(kind: str, body: str, actor: dict, photo: dict | None = None, comment: dict | None = None) -> dict:
    """A notification; `actor` is of kind USERS, `photo` of kind MEDIA.

    On the phone, the later one of a collapse-id takes the place of the earlier: likes of each other, comments do not.
    """
    if photo:
        link, thumbnail = f"media?id={media_id(photo)}", media_preview(photo)["images"]["thumbnail"]["url"]
    else:
        link, thumbnail = f"user?username={actor['username']}", short_user(actor)["profile_picture"]
    about = comment or photo or actor
    return {
        "aps": {"alert": {"body": body}, "sound": "default", "thread-id": link, "mutable-content": 1},
        "link": f"instagram://{link}",
        "thumbnail": thumbnail,
        "apns": {"collapse-id": f"{kind}:{about['id']}", "priority": 10, "expiration": int(time.time()) + EXPIRES},
    }


def send_again(user_id: int, token: str, event: str, payload: dict) -> None:
    """Sends what could not be delivered to one of a user's phones, if that is still the user's."""
    if phones := Device.objects.filter(token=token, user_id=user_id):
        _send(list(phones), Push(user_id, event, payload))


def _send(devices: list[Device], push: Push) -> None:
    """Sends a push to all phones of a user, and forgets those that are dead.

    A phone that cannot be told now gets a job of its own, so that the others do not ring once more. Raises
    client.Unavailable if none can be told.
    """
    again = []
    for environment in Environment.values:
        if phones := [one for one in devices if one.environment == environment]:
            undelivered = _sent(environment, phones, push)
            again += [one for one in phones if undelivered.get(one.token) == UNDELIVERED]
            for one in phones:
                if undelivered.get(one.token) in DEAD:
                    remove(one)
    if len(again) == len(devices):
        raise client.Unavailable(f"none of {len(devices)} phones could be told")
    if again:
        with transaction.atomic():
            enqueue_many("notifications.send_again", [push._asdict() | {"token": one.token} for one in again])


def _sent(environment: str, phones: list[Device], push: Push) -> dict[str, str]:
    """The tokens of those phones that were not told, each with the reason."""
    tokens = [one.token for one in phones]
    try:
        return dict(client.notify(environment, tokens, [_for_phone(push, token) for token in tokens]))
    except client.Unavailable as error:
        logger.warning("%s: %s", push.event, error)
        return dict.fromkeys(tokens, UNDELIVERED)


def _for_phone(push: Push, token: str) -> dict:
    notification_id = uuid.uuid5(NAMESPACE, f"{push.event} {token}")
    return push.payload | {"apns": push.payload["apns"] | {"id": str(notification_id)}}
