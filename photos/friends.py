"""Friends at other services: when somebody links an account, those who are here too are told. See docs/sharing.md.

By jobs, since services are slow: `photos.link_changed` asks who the user is there, and `photos.find_friends`, a page at
a time, who the friends are. Who is told, and whether at all, notifications/tell.py decides.
"""

import datetime

from django.db import transaction

from photos import networks, sharing
from photos.models import Identity, ShareAccount
from shardmap.shards import on_shard, shard_transaction
from workers.mirror import mirror
from workers.outbox import enqueue, enqueue_in, enqueue_many

MOST_PAGES = 20  # of a user's friends; with more than 100,000 of them, one is no friend but a celebrity


def link_changed(user_id: int, service: str) -> None:
    """Brings the directory up to a user's link at a service. Raises networks.Away."""

    def credentials() -> str | None:
        account = _account(user_id, service)
        return account and account.credentials

    try:
        mirror(credentials, lambda found: _identify(user_id, service, found))
    except networks.Busy as busy:
        with transaction.atomic():
            delay = datetime.timedelta(seconds=busy.seconds)
            enqueue_in(delay, "photos.link_changed", user_id=user_id, service=service)


def find_friends(user_id: int, service: str, cursor: str = "", pages: int = MOST_PAGES) -> None:
    """Has those told, of a page of a user's friends, who are here; writes the job for the next page. Raises Away."""
    account = _account(user_id, service)
    if account is None or not Identity.objects.filter(user_id=user_id, service=service).exists():
        return  # unlinked since, or somebody else has linked that account
    this = {"user_id": user_id, "service": service}
    try:
        ids, following = networks.NETWORKS[service].friends(sharing.credentials_of(account), cursor)
    except networks.Busy as busy:
        delay = datetime.timedelta(seconds=busy.seconds)
        if pages > 1:
            with transaction.atomic():
                enqueue_in(delay, "photos.find_friends", **this, cursor=cursor, pages=pages - 1)
        return
    except networks.Refused as error:
        _note(account, error)
        return
    here = Identity.objects.filter(service=service, account_id__in=ids).exclude(user_id=user_id)
    told = [
        {"friend_id": user_id, "service": service, "user_id": one} for one in here.values_list("user_id", flat=True)
    ]
    with transaction.atomic():
        enqueue_many("notifications.friend_joined", told)
        if following and pages > 1:
            enqueue("photos.find_friends", **this, cursor=following, pages=pages - 1)


def _identify(user_id: int, service: str, credentials: str | None) -> None:
    """Writes who a user is at a service; nobody, if there is no link, or one that does not open."""
    own = Identity.objects.filter(user_id=user_id, service=service)
    account = ShareAccount(user_id=user_id, service=service, credentials=credentials)
    try:
        account_id = networks.NETWORKS[service].me(sharing.credentials_of(account)) if credentials else None
    except (networks.Refused, networks.WrongSignature) as error:  # the latter, of a new link, is the link's fault
        _note(account, error)
        account_id = None
    with transaction.atomic():
        if account_id is None:
            own.delete()
            return
        # An account there is one user's here: the last one's who has linked it.
        Identity.objects.filter(service=service, account_id=account_id).exclude(user_id=user_id).delete()
        Identity.objects.update_or_create(user_id=user_id, service=service, defaults={"account_id": account_id})
        enqueue("photos.find_friends", user_id=user_id, service=service)


def _account(user_id: int, service: str) -> ShareAccount | None:
    with on_shard(user_id):
        return ShareAccount.objects.filter(user_id=user_id, service=service).first()


def _note(account: ShareAccount, error: Exception) -> None:
    if isinstance(error, networks.LinkBroken | networks.WrongSignature):
        with shard_transaction(account.user_id):
            sharing.note_broken(account)
