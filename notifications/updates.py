"""Telling subscriptions of new photos: `published`, `placed` and `tagged` note whom; `deliver` does it.

An update says that there is something new, and its receiver then lists what there is. So each of the three jobs is
queued by the very transaction that lists the photo: among its owner's, at its place, under its tag.

A callback has one job `deliver` at a time (`is_busy`), which sends what waits in one request and queues the next job if
more has come meanwhile. Whoever adds an update or ends a turn holds the callback's row, so none is left behind. That
job never fails by a callback's fault: it comes back after a backoff, until what waits is too old. See docs/realtime.md.
"""

import datetime
import hmac
import json
import logging
import time
from collections.abc import Iterable

from django.db import connection, transaction
from django.db.models import Q, QuerySet
from django.db.models.functions import Now
from django.utils import timezone
from oauth2_provider.models import AccessToken

from notifications import callbacks
from notifications.models import Callback, Object, Subscription, Update
from notifications.schemas import object_id
from photos.cached import MEDIA
from photos.models import PlacedPhoto, Status
from photos.places import EARTH_METRES, FARTHEST
from photos.visible import seen
from shardmap import cache
from workers.outbox import enqueue, enqueue_in

logger = logging.getLogger(__name__)

BATCH = 100  # updates in a request
LONGEST_BACKOFF = 300  # seconds
# A callback rests ten times as long as it took to answer before it gets more. So it has a tenth of a worker at most.
REST = 10
LONGEST_WAIT = datetime.timedelta(days=1)  # then an update is dropped
# A job that noted an update may come twice, within the hour in which jobs are tried again.
REMEMBERED = datetime.timedelta(hours=2)


def published(owner_id: int, photo_id: int) -> None:
    """Notes a new photo for the clients that its owner has authorized."""
    subscriptions = Subscription.objects.filter(
        object=Object.USER,
        callback__client__accesstoken__user_id=owner_id,
        callback__client__accesstoken__expires__gt=Now(),
    )
    _note(subscriptions.distinct(), owner_id, photo_id)


def placed(owner_id: int, photo_id: int) -> None:
    """Notes a new photo for those who watch its place, or a circle around it."""
    location = PlacedPhoto.objects.filter(photo_id=photo_id).values_list("location_id", flat=True).first()
    here = Q(object=Object.LOCATION, target=str(location)) | Q(id__in=_geographies_around(photo_id))
    _note(Subscription.objects.filter(here), owner_id, photo_id)


def tagged(owner_id: int, photo_id: int, name: str) -> None:
    """Notes a photo, new under a tag, for those who watch the tag."""
    _note(Subscription.objects.filter(object=Object.TAG, target=name), owner_id, photo_id)


def deliver(callback_id: int, turn: int) -> None:
    """Sends what waits for a callback, as far as one request takes it."""
    callback = Callback.objects.select_related("client").filter(id=callback_id, turn=turn).first()
    if callback is None:  # unsubscribed, or done before
        return
    _drop_old(callback)
    waiting = list(_waiting(callback).select_related("subscription").order_by("id")[:BATCH])
    due = _still_due(callback, waiting)
    began = time.monotonic()
    try:
        if due:
            body = json.dumps([_as_json(update) for update in due]).encode()
            signature = hmac.digest(callback.client.client_secret.encode(), body, "sha1").hex()
            callbacks.post(callback.url, body, signature)
    except callbacks.Failed as error:
        _failed(callback, str(error))
    else:
        _told(callback, waiting, answered=bool(due), seconds=time.monotonic() - began)


def _geographies_around(photo_id: int) -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT subscription_id FROM photos_placedphoto AS photo, notifications_geography AS geography
            WHERE photo.photo_id = %(photo)s
                AND geography.position <@ cube_enlarge(photo.position, %(farthest)s / %(earth)s, 3)
                AND cube_distance(geography.position, photo.position) <= geography.radius / %(earth)s
            """,
            {"photo": photo_id, "farthest": FARTHEST, "earth": float(EARTH_METRES)},
        )
        return [row[0] for row in cursor.fetchall()]


def _note(subscriptions: QuerySet[Subscription], owner_id: int, photo_id: int) -> None:
    found = list(subscriptions)
    if found:
        cache.refresh_surely(MEDIA, photo_id)  # `deliver` must not take what was cached before for the truth
    updates = [
        Update(callback_id=one.callback_id, subscription=one, photo_id=photo_id, owner_id=owner_id) for one in found
    ]
    with transaction.atomic():
        callbacks = Callback.objects.select_for_update(no_key=True).filter(id__in={one.callback_id for one in found})
        for callback in callbacks.order_by("id"):
            if not callback.is_busy:
                _next_turn(callback)
        Update.objects.bulk_create(updates, ignore_conflicts=True)


def _waiting(callback: Callback) -> QuerySet[Update]:
    return Update.objects.filter(callback=callback, is_done=False)


def _still_due(callback: Callback, updates: Iterable[Update]) -> list[Update]:
    """Those of photos that are still there, and for the client to know of.

    A user whose token the client has shows it all photos; anybody else, what is public.
    """
    photos = [(update.photo_id, update.owner_id) for update in updates]
    public = {photo["id"] for photo in seen(None, photos)}
    (media,) = cache.fetch((MEDIA, [photo_id for photo_id, _ in photos]))
    ready = {photo_id for photo_id, photo in media.items() if photo["status"] == Status.READY}
    tokens = AccessToken.objects.filter(application=callback.client, expires__gt=Now())
    users = set(tokens.filter(user__in={owner_id for _, owner_id in photos}).values_list("user_id", flat=True))
    return [
        update
        for update in updates
        if (
            update.photo_id in ready and update.owner_id in users
            if update.subscription.object == Object.USER
            else update.photo_id in public
        )
    ]


def _as_json(update: Update) -> dict:
    return {
        "subscription_id": str(update.subscription_id),
        "object": update.subscription.object,
        "object_id": object_id(update.subscription) or str(update.owner_id),
        "changed_aspect": "media",
        "time": int(update.created_at.timestamp()),
        "data": {"media_id": f"{update.photo_id}_{update.owner_id}"},
    }


def _told(callback: Callback, updates: list[Update], *, answered: bool, seconds: float) -> None:
    """Ends a turn that went well, in so many seconds."""
    with transaction.atomic():
        Update.objects.filter(id__in=[update.id for update in updates]).update(is_done=True)
        if not _lock(callback):
            return
        if answered:
            callback.failures, callback.failing_since, callback.last_error = 0, None, ""
        if _waiting(callback).exists():
            _next_turn(callback, int(REST * seconds))
        else:
            callback.is_busy = False
            callback.save()


def _failed(callback: Callback, error: str) -> None:
    """Ends a turn that the callback did not take; the next one comes after 2, 4, 8 … s."""
    logger.warning("callback %s of client %s: %s", callback.url, callback.client.client_id, error)
    with transaction.atomic():
        if not _lock(callback):
            return
        callback.failures += 1
        callback.failing_since = callback.failing_since or timezone.now()
        callback.last_error = error[:300]
        _next_turn(callback, min(LONGEST_BACKOFF, 2 ** min(callback.failures, 10)))


def _lock(callback: Callback) -> bool:
    """Whether it is still there, and this its turn; from here to the commit nobody else changes it."""
    this_turn = Callback.objects.filter(id=callback.id, turn=callback.turn)
    return this_turn.select_for_update(no_key=True).first() is not None


def _next_turn(callback: Callback, seconds: int = 0) -> None:
    callback.turn += 1
    callback.is_busy = True
    callback.save()
    job = {"callback_id": callback.id, "turn": callback.turn}
    if seconds:
        enqueue_in(datetime.timedelta(seconds=seconds), "notifications.deliver", **job)
    else:
        enqueue("notifications.deliver", **job)


def _drop_old(callback: Callback) -> None:
    if dropped := _waiting(callback).filter(created_at__lt=Now() - LONGEST_WAIT).delete()[0]:
        logger.error("dropped %d updates for %s, which has failed for too long", dropped, callback.url)
    Update.objects.filter(callback=callback, is_done=True, created_at__lt=Now() - REMEMBERED).delete()
