"""Photos on their way to other services: caption and permalink, by the job `photos.share`. See docs/sharing.md.

Nothing is posted twice. Before the request, the row says `posting`: whoever finds it so (after a time-out, a 5xx, or
the death of a worker) does not know whether the service has posted, so first it looks for the permalink in what the
user has posted lately. That holds whatever the user has made of the caption since. After a time-out the service may
still be at it, so that the look waits for HELD. A post that takes longer yet to appear is left to the service's own
check for duplicates, which Twitter (187) and Facebook (506) have for what has just been said; it alone would not do,
for it compares texts, and forgets.
"""

import datetime

from django.db.models import F, Q
from django.db.models.functions import Now

from accounts.errors import InvalidParameters, NotAllowed, NotFound
from photos import networks, sharing
from photos.models import Photo, Share, ShareAccount, ShareStatus, Status
from photos.schemas import link_of
from photos.services import get
from shardmap.shards import on_shard, shard_transaction
from workers.outbox import enqueue_in

# A row that one run of the job has is no other's for so long: longer than a job may run (workers/worker.py).
HELD = datetime.timedelta(seconds=27)
# After which a photo is no news any more; a service that is busy for longer is not asked again.
GIVEN_UP_AFTER = datetime.timedelta(days=1)

Ref = tuple[int, int | None]  # photo, and its owner as far as known


class Taken(Exception):
    """Another run is at it, or was when it died: come again."""


def share_later(viewer_id: int, ref: Ref, services: list[str]) -> list[Share]:
    """Shares a photo of the viewer's, again where that failed; returns how each of its shares is going.

    Raises InvalidParameters (a service that is not linked, a photo that was rejected), and as `services.get`.
    """
    photo_id = _own(viewer_id, ref)
    sharing.require_linked(viewer_id, services)
    with shard_transaction(viewer_id):
        photo = Photo.objects.select_for_update().exclude(status=Status.DELETED).filter(id=photo_id).first()
        if photo is None:
            raise NotFound(f"there is no media {photo_id}")
        if photo.status == Status.REJECTED:
            raise InvalidParameters(f"media_id: the photo was rejected: {photo.message}")
        sharing.wish(photo_id, services)
        if photo.status == Status.READY:  # else it will begin with the others when it is
            sharing.begin(photo)
    return shares_of(viewer_id, ref)


def shares_of(viewer_id: int, ref: Ref) -> list[Share]:
    """How the shares of a photo of the viewer's are going. Raises as `services.get`."""
    photo_id = _own(viewer_id, ref)
    with on_shard(viewer_id):
        return list(Share.objects.filter(photo_id=photo_id).order_by("service"))


def _own(viewer_id: int, ref: Ref) -> int:
    photo = get(viewer_id, *ref)
    if photo["owner_id"] != viewer_id:
        raise NotAllowed("only its owner may share a photo")
    return photo["id"]


def share(owner_id: int, photo_id: int, service: str) -> None:
    """Posts a photo at a service, as a job. Raises networks.Away, Taken."""
    held = _take(owner_id, photo_id, service)
    if held is None:
        return
    with on_shard(owner_id):
        account = ShareAccount.objects.filter(user_id=owner_id, service=service).first()
        photo = Photo.objects.get(id=photo_id)
    try:
        post_id = _post(held, photo, account)
    except networks.Busy as busy:
        _put_off(held, photo, busy)
    except networks.Refused as error:
        with shard_transaction(owner_id):
            if isinstance(error, networks.LinkBroken):
                sharing.note_broken(account)
            _note(held, status=ShareStatus.FAILED, message=str(error)[:300])
    except networks.Away as error:
        with on_shard(owner_id):
            _note(held, held_until=Now() + HELD if isinstance(error, networks.Slow) else None)
        raise
    else:
        with on_shard(owner_id):
            _note(held, status=ShareStatus.SHARED, post_id=post_id)


def _take(owner_id: int, photo_id: int, service: str) -> Share | None:
    """Marks a share as being posted, by this run alone; returns it as it was before, None if nothing is to be done."""
    with shard_transaction(owner_id):
        shares = Share.objects.filter(photo_id=photo_id, service=service)
        # By the clock of Postgres alone: those of the workers may differ.
        times = {
            "is_held": Q(held_until__gt=Now()),
            "is_held_long": Q(held_until__gt=Now() + HELD),
            "age": Now() - F("wished_at"),
        }
        found = shares.select_for_update().annotate(**times).first()
        if found is None or found.status not in (ShareStatus.WAITING, ShareStatus.POSTING):
            return None
        if found.is_held_long or (found.is_held and found.status == ShareStatus.WAITING):
            return None  # it waits for the end of a rate limit, with a job of its own
        if found.is_held:
            raise Taken
        shares.update(status=ShareStatus.POSTING, held_until=Now() + HELD)
    return found


def _post(held: Share, photo: Photo, account: ShareAccount | None) -> str:
    """Posts, unless it is there already; returns the post's ID, "" if only the service knows it."""
    network = networks.offered().get(held.service)
    if photo.status != Status.READY:
        raise networks.Refused("The photo was deleted.")
    if account is None or network is None:
        raise networks.Refused("The account is no longer linked.")
    if account.is_broken:
        raise networks.LinkBroken(network.title)
    credentials, link = sharing.credentials_of(account), link_of(photo.id)
    if held.status == ShareStatus.POSTING and (post_id := network.find(credentials, link)):
        return post_id
    try:
        return network.post(credentials, photo.caption, link)
    except networks.Duplicate:
        return network.find(credentials, link) or ""


def _put_off(held: Share, photo: Photo, busy: networks.Busy) -> None:
    """Comes back after a rate limit, with the same doubts as before: it has posted nothing."""
    delay = datetime.timedelta(seconds=busy.seconds)
    with shard_transaction(photo.owner_id):
        if held.age + delay > GIVEN_UP_AFTER:
            _note(held, status=ShareStatus.FAILED, message="The service took nothing from us for a day.")
            return
        _note(held, status=held.status, held_until=Now() + delay)
        enqueue_in(delay, "photos.share", owner_id=photo.owner_id, photo_id=photo.id, service=held.service)


def _note(held: Share, **values) -> None:
    """Writes how it went, and lets go of the row."""
    Share.objects.filter(photo_id=held.photo_id, service=held.service).update(**{"held_until": None} | values)
