"""Access tokens: who is asking? One read from Memcached.

The tokens themselves are django-oauth-toolkit's, in the directory. Memcached holds what a request needs of them under
the token's SHA-256, so that a dump of the cache opens no account.
"""

import datetime
import hashlib
import time
from dataclasses import dataclass

from django.conf import settings
from django.db import transaction
from django.db.models.signals import post_delete, post_save
from oauth2_provider.generators import generate_client_id
from oauth2_provider.models import AccessToken, Application

from accounts.errors import InvalidClient, InvalidToken
from accounts.models import User
from shardmap import cache
from workers.outbox import enqueue

PHONE = "phone"  # the first-party client: public, with all scopes, alone in having sign-up and the password grant
LONGEST_TOKEN = 255


@dataclass(frozen=True)
class Viewer:
    """Who asks, through which client, and what that client may do."""

    user_id: int
    client_id: str
    scopes: frozenset[str]


def _load(checksums: list[str]) -> dict[str, dict]:
    tokens = AccessToken.objects.filter(token_checksum__in=checksums).exclude(user=None)
    return {
        checksum: {
            "user_id": user_id,
            "client_id": client_id,
            "scopes": scope.split(),
            "expires": int(expires.timestamp()),
        }
        for checksum, user_id, client_id, scope, expires in tokens.values_list(
            "token_checksum", "user_id", "application__client_id", "scope", "expires"
        )
    }


TOKENS = cache.Kind("token", _load, "user_id client_id scopes expires")


def viewer_of(token: str) -> Viewer:
    """Whose token this is. Raises InvalidToken, or InvalidClient if it cannot be a token at all."""
    if not token or len(token) > LONGEST_TOKEN:
        raise InvalidClient("access_token: missing or malformed")
    checksum = _checksum(token)
    (tokens,) = cache.fetch((TOKENS, [checksum]))
    found = tokens.get(checksum)
    if found is None or found["expires"] <= time.time():
        raise InvalidToken("The access_token provided is invalid.")
    return Viewer(found["user_id"], found["client_id"], frozenset(found["scopes"]))


def issue(user: User, client_id: str) -> str:
    """A new token of the phone app for a user, with all scopes."""
    lifetime = datetime.timedelta(seconds=settings.OAUTH2_PROVIDER["ACCESS_TOKEN_EXPIRE_SECONDS"])
    token = AccessToken.objects.create(
        user=user,
        application=Application.objects.get(client_id=client_id),
        token=generate_client_id(),
        scope=" ".join(settings.OAUTH2_PROVIDER["SCOPES"]),
        expires=datetime.datetime.now(datetime.UTC) + lifetime,
    )
    return token.token


def revoke_all(user_id: int) -> None:
    """Ends all sessions of a user. To be called in a transaction of the directory."""
    AccessToken.objects.filter(user_id=user_id).delete()


def forget_when_deleted() -> None:
    """A revoked token stops working at once, whatever deletes or changes it."""
    post_delete.connect(_token_changed, sender=AccessToken, dispatch_uid="accounts.tokens")
    post_save.connect(_token_changed, sender=AccessToken, dispatch_uid="accounts.tokens")


def _token_changed(sender, instance: AccessToken, created: bool = False, **kwargs) -> None:
    if created:
        return
    key = TOKENS.key(_checksum(instance.token))
    # Deleting sends its signal inside of a transaction, saving after it.
    with transaction.atomic():
        transaction.on_commit(lambda: cache.forget(key))
        enqueue("accounts.forget", keys=[key])


def _checksum(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
