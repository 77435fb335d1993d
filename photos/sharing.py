"""A user's accounts at other services, to which photos can be shared, and which photos are to go there.

What opens those accounts is kept encrypted, with keys that are in no database (settings.CREDENTIALS_KEYS): a dump of a
shard alone opens none. What is shared, and how, is in photos/shares.py.
"""

import base64
import hashlib
import json
from collections.abc import Iterable

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.db.models.functions import Now

from accounts.errors import InvalidParameters, NotFound
from photos import networks
from photos.models import Identity, Photo, Share, ShareAccount, ShareStatus, Status
from shardmap.shards import on_shard, shard_transaction
from workers.outbox import enqueue, enqueue_many


def link(user_id: int, service: str, username: str, token: str, secret: str | None) -> ShareAccount:
    """Stores a user's account at a service; a second one there takes the first one's place.

    `token` is the access token that the service gave; one of OAuth 1.0a (Twitter) has a `secret`. Raises
    InvalidParameters.
    """
    if service not in networks.offered():
        raise InvalidParameters(f"service: {service} is not offered here")
    if (secret is None) == (service == "twitter"):
        raise InvalidParameters("secret: Twitter's tokens have one, those of other services have none")
    credentials = _cipher().encrypt(json.dumps({"token": token, "secret": secret}).encode())
    values = {"username": username, "credentials": credentials.decode(), "is_broken": False}
    with shard_transaction(user_id):
        linked, _ = ShareAccount.objects.update_or_create(user_id=user_id, service=service, defaults=values)
        enqueue("photos.link_changed", user_id=user_id, service=service)
    return linked


def linked(user_id: int) -> list[ShareAccount]:
    """A user's accounts at other services."""
    with on_shard(user_id):
        return list(ShareAccount.objects.filter(user_id=user_id).order_by("service"))


def require_linked(user_id: int, services: Iterable[str]) -> None:
    """Raises InvalidParameters for services at which the user has linked no account."""
    if missing := set(services) - {account.service for account in linked(user_id)}:
        raise InvalidParameters(f"share_to: you have linked no account at {', '.join(sorted(missing))}")


def credentials_of(account: ShareAccount) -> dict[str, str | None]:
    """What opens the account: {token, secret}. Raises networks.LinkBroken if none of our keys decrypts it."""
    try:
        return json.loads(_cipher().decrypt(account.credentials.encode()))
    except InvalidToken:
        raise networks.LinkBroken(networks.NETWORKS[account.service].title) from None


def note_broken(account: ShareAccount) -> None:
    """Notes that the service no longer lets us into the account, and has the user told, once.

    In a transaction on the user's shard. Does nothing when the account was linked anew meanwhile.
    """
    same = ShareAccount.objects.filter(
        user_id=account.user_id, service=account.service, credentials=account.credentials, is_broken=False
    )
    if same.update(is_broken=True):
        enqueue("notifications.link_broken", user_id=account.user_id, service=account.service)


def unlink(user_id: int, service: str) -> None:
    """Forgets a user's account at a service. Raises NotFound."""
    with shard_transaction(user_id):
        if not ShareAccount.objects.filter(user_id=user_id, service=service).delete()[0]:
            raise NotFound(f"you have linked no account at {service}")
        enqueue("photos.link_changed", user_id=user_id, service=service)


def unlink_all(user_id: int) -> None:
    with on_shard(user_id):
        ShareAccount.objects.filter(user_id=user_id).delete()
    Identity.objects.filter(user_id=user_id).delete()


def wish(photo_id: int, services: Iterable[str]) -> None:
    """Notes that a photo is to be shared, again where that failed. In a transaction on the owner's shard."""
    failed = Share.objects.filter(photo_id=photo_id, service__in=services, status=ShareStatus.FAILED)
    # Perhaps it was posted all the same, before that which failed.
    failed.update(status=ShareStatus.POSTING, message="", wished_at=Now())
    shares = [Share(photo_id=photo_id, service=service) for service in services]
    Share.objects.bulk_create(shares, ignore_conflicts=True)


def begin(photo: Photo) -> None:
    """What becomes of a photo's wishes now that it is ready, or rejected. In a transaction on the owner's shard."""
    wished = Share.objects.filter(photo_id=photo.id, status__in=(ShareStatus.WAITING, ShareStatus.POSTING))
    if photo.status == Status.READY:
        what = {"owner_id": photo.owner_id, "photo_id": photo.id}
        enqueue_many("photos.share", [what | {"service": share.service} for share in wished])
    else:
        wished.update(status=ShareStatus.FAILED, message="The photo was rejected.")


def bury(owner_id: int, photo_id: int) -> None:
    """Forgets where a deleted photo was shared."""
    with on_shard(owner_id):
        Share.objects.filter(photo_id=photo_id).delete()


def _cipher() -> MultiFernet:
    """Encrypts with the first of the keys, and decrypts with any, so that they can be changed."""
    keys = (hashlib.sha256(key.encode()).digest() for key in settings.CREDENTIALS_KEYS)
    return MultiFernet([Fernet(base64.urlsafe_b64encode(key)) for key in keys])
