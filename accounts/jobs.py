"""What follows from changes to accounts and to the follow graph."""

from datetime import timedelta

from django.db import transaction
from django.db.models.functions import Now
from oauth2_provider.models import AccessToken, Application, Grant

from accounts import graph
from shardmap import cache
from shardmap.batches import delete_all
from workers.outbox import enqueue
from workers.registry import job

job("accounts.mirror_follow", queue="urgent")(graph.mirror_follow)
job("accounts.mirror_block", queue="urgent")(graph.mirror_block)
job("accounts.approve_all")(graph.approve_all)


@job("accounts.forget", queue="urgent")
def forget(keys: list[str]) -> None:
    cache.forget_surely(*keys)


@job("accounts.clear_expired", every=timedelta(days=1))
def clear_expired() -> None:
    """Removes codes that no client came for. (Access tokens end by revocation, long before they expire.)"""
    delete_all(Grant.objects.filter(expires__lt=Now()))


@job("accounts.erase")
def erase(user_id: int, after: int = 0) -> None:
    """Removes what a deleted user has left in the graph, and the user's clients; some at a time."""
    last = graph.leave(user_id, after)
    if last is None:
        delete_all(AccessToken.objects.filter(application__user_id=user_id))
        Application.objects.filter(user_id=user_id).delete()
        return
    with transaction.atomic():
        enqueue("accounts.erase", user_id=user_id, after=last)
