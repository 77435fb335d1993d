"""A user's accounts at other services, to which photos can be shared.

What opens those accounts is kept encrypted, with keys that are in no database (settings.CREDENTIALS_KEYS): a dump of a
shard alone opens none.
"""

import base64
import hashlib
import json

from cryptography.fernet import Fernet, MultiFernet
from django.conf import settings

from accounts.errors import InvalidParameters, NotFound
from photos.models import ShareAccount
from shardmap.shards import on_shard


def link(user_id: int, service: str, username: str, token: str, secret: str | None) -> ShareAccount:
    """Stores a user's account at a service; a second one there takes the first one's place.

    `token` is the access token that the service gave; one of OAuth 1.0a (Twitter) has a `secret`. Raises
    InvalidParameters.
    """
    if (secret is None) == (service == "twitter"):
        raise InvalidParameters("secret: Twitter's tokens have one, those of other services have none")
    credentials = _cipher().encrypt(json.dumps({"token": token, "secret": secret}).encode())
    with on_shard(user_id):
        linked, _ = ShareAccount.objects.update_or_create(
            user_id=user_id, service=service, defaults={"username": username, "credentials": credentials.decode()}
        )
    return linked


def linked(user_id: int) -> list[ShareAccount]:
    """A user's accounts at other services."""
    with on_shard(user_id):
        return list(ShareAccount.objects.filter(user_id=user_id).order_by("service"))


def credentials_of(account: ShareAccount) -> dict[str, str | None]:
    """What opens the account: {token, secret}."""
    return json.loads(_cipher().decrypt(account.credentials.encode()))


def unlink(user_id: int, service: str) -> None:
    """Forgets a user's account at a service. Raises NotFound."""
    with on_shard(user_id):
        if not ShareAccount.objects.filter(user_id=user_id, service=service).delete()[0]:
            raise NotFound(f"you have linked no account at {service}")


def unlink_all(user_id: int) -> None:
    with on_shard(user_id):
        ShareAccount.objects.filter(user_id=user_id).delete()


def _cipher() -> MultiFernet:
    """Encrypts with the first of the keys, and decrypts with any, so that they can be changed."""
    keys = (hashlib.sha256(key.encode()).digest() for key in settings.CREDENTIALS_KEYS)
    return MultiFernet([Fernet(base64.urlsafe_b64encode(key)) for key in keys])
