"""Access tokens and clients: who is asking? One read from Memcached.

The tokens themselves are django-oauth-toolkit's, in the directory. Memcached holds what a request needs of them under
the token's SHA-256, so that a dump of the cache opens no account. Beside them it holds the clients, with the secrets by
which signatures are checked: neither opens an account without a token.
"""

import datetime
import hashlib
import re
import time
from dataclasses import dataclass

from django.conf import settings
from django.db import transaction
from django.db.models.signals import post_delete, post_save
from oauth2_provider.generators import generate_client_id
from oauth2_provider.models import AccessToken, Application, Grant

from accounts.errors import InvalidClient, InvalidToken
from accounts.models import SigningClient, User
from shardmap import cache
from workers.outbox import enqueue

PHONE = "phone"  # the first-party client: public, with all scopes, alone in having sign-up and the password grant
LONGEST_TOKEN = 255
CLIENT_ID = re.compile(r"[!-~]{1,100}")


@dataclass(frozen=True)
class Caller:
    """Who asks, through which client, and what that client may do. `user_id` is None for a client without a token."""

    user_id: int | None
    client_id: str | None
    scopes: frozenset[str]


@dataclass(frozen=True)
class Viewer(Caller):
    """A user who asks."""

    user_id: int


@dataclass(frozen=True)
class Client:
    """An app: the secret by which it signs, and whether each of its requests has to be signed."""

    client_id: str
    secret: str
    must_sign: bool


def _load_tokens(checksums: list[str]) -> dict[str, dict]:
    tokens = AccessToken.objects.filter(token_checksum__in=checksums, user__is_active=True)
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


def _load_clients(client_ids: list[str]) -> dict[str, dict]:
    clients = Application.objects.filter(client_id__in=client_ids)
    return {
        client_id: {"secret": secret, "must_sign": signing is not None}
        for client_id, secret, signing in clients.values_list("client_id", "client_secret", "signing")
    }


def _viewer_until(token: dict) -> tuple[Viewer, int]:
    return Viewer(token["user_id"], token["client_id"], frozenset(token["scopes"])), token["expires"]


TOKENS = cache.Kind("token", _load_tokens, "user_id client_id scopes expires", _viewer_until)
CLIENTS = cache.Kind("client", _load_clients, "secret must_sign")


def viewer_of(token: str) -> Viewer:
    """Whose token this is. Raises InvalidToken, or InvalidClient if it cannot be a token at all."""
    if not token or len(token) > LONGEST_TOKEN:
        raise InvalidClient("access_token: missing or malformed")
    checksum = _checksum(token)
    (tokens,) = cache.fetch((TOKENS, [checksum]))
    viewer, expires = tokens.get(checksum, (None, 0))
    if expires <= time.time():
        raise InvalidToken("The access_token provided is invalid.")
    return viewer


def probable_viewer(token: str) -> int | None:
    """Whose token this was when this process last looked, if it remembers: nothing that opens anything."""
    viewer, _expires = cache.glimpse(TOKENS, _checksum(token)) or (None, 0)
    return viewer and viewer.user_id


def require_phone(caller: Caller) -> None:
    """For what no app but our own may do. Raises InvalidClient."""
    if caller.client_id != PHONE:
        raise InvalidClient(f"client_id: {caller.client_id!r} may not do this; only the phone app may")


def client_of(client_id: str) -> Client:
    """The client of that ID. Raises InvalidClient."""
    if CLIENT_ID.fullmatch(client_id):
        (clients,) = cache.fetch((CLIENTS, [client_id]))
        if client_id in clients:
            return Client(client_id, **clients[client_id])
    raise InvalidClient("client_id: there is no such client")


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
    """Ends all sessions of a user, in all apps. To be called in a transaction of the directory."""
    Grant.objects.filter(user_id=user_id).delete()
    AccessToken.objects.filter(user_id=user_id).delete()


def forget_when_changed() -> None:
    """A revoked token stops working at once, and so does a client's old secret, whatever deletes or changes it."""
    for signal in (post_delete, post_save):
        signal.connect(_token_changed, sender=AccessToken, dispatch_uid="accounts.tokens")
        signal.connect(_client_changed, sender=Application, dispatch_uid="accounts.tokens")
        signal.connect(_signing_changed, sender=SigningClient, dispatch_uid="accounts.tokens")


def _token_changed(sender, instance: AccessToken, created: bool = False, **kwargs) -> None:
    if not created:
        _forget(TOKENS.key(_checksum(instance.token)))


def _client_changed(sender, instance: Application, created: bool = False, **kwargs) -> None:
    if not created:
        _forget(CLIENTS.key(instance.client_id))


def _signing_changed(sender, instance: SigningClient, **kwargs) -> None:
    _forget(CLIENTS.key(instance.client.client_id))


def _forget(key: str) -> None:
    # Deleting sends its signal inside of a transaction, saving after it.
    with transaction.atomic():
        transaction.on_commit(lambda: cache.forget(key))
        enqueue("accounts.forget", keys=[key])


def _checksum(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
