"""Sign-up, and reading users."""

import re
from collections.abc import Iterable

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import IntegrityError, connections, transaction

from accounts import tokens
from accounts.errors import InvalidClient, InvalidParameters, NotAllowed, NotFound
from accounts.models import Block, Counts, User
from shardmap import cache
from shardmap.shards import current_shard, database_of, on_shard

USERNAME = re.compile(r"[a-z0-9._]{1,30}")
LONGEST_PASSWORD = 128  # hashing is dear; a megabyte of password would be an attack


def _load_users(user_ids: list[int]) -> dict[int, dict]:
    fields = ("id", "username", "full_name", "bio", "website", "profile_picture")
    return {user["id"]: user for user in User.objects.filter(id__in=user_ids).values(*fields)}


def _load_counts(user_ids: list[int]) -> dict[int, dict]:
    counts = {}
    for user_id in user_ids:
        with on_shard(user_id):
            row = Counts.objects.filter(user_id=user_id).values("media", "follows", "followed_by").first()
        counts[user_id] = row or {"media": 0, "follows": 0, "followed_by": 0}
    return counts


def _load_blocked(user_ids: list[int]) -> dict[int, list[int]]:
    blocked = {}
    for user_id in user_ids:
        with on_shard(user_id):
            blocked[user_id] = list(Block.objects.filter(blocker_id=user_id).values_list("blocked_id", flat=True))
    return blocked


USERS = cache.Kind("user", _load_users)
COUNTS = cache.Kind("counts", _load_counts)
BLOCKED = cache.Kind("blocked", _load_blocked)  # whom a user has blocked


def sign_up(client_id: str, username: str, password: str, email: str, full_name: str) -> tuple[dict, str]:
    """Makes an account; returns its value of kind USERS, and an access token.

    Raises InvalidParameters, naming the parameter that is wrong or taken, and InvalidClient for any client but
    the phone app.
    """
    if client_id != tokens.PHONE:
        raise InvalidClient(f"client_id: {client_id!r} may not sign users up")
    username, email = username.lower(), email.lower()
    if not USERNAME.fullmatch(username):
        raise InvalidParameters("username: must be 1 to 30 characters of a-z, 0-9, dot and underscore")
    try:
        User._meta.get_field("email").run_validators(email)
        validate_email(email)
    except ValidationError:
        raise InvalidParameters(f"email: {email!r} is not an email address") from None
    user = User(username=username, email=email, full_name=full_name)
    if len(password) > LONGEST_PASSWORD:
        raise InvalidParameters(f"password: longer than {LONGEST_PASSWORD} characters")
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise InvalidParameters(f"password: {' '.join(error.messages)}") from None
    user.set_password(password)
    try:
        with transaction.atomic():
            user.save()
            token = tokens.issue(user, client_id)
    except IntegrityError as error:
        taken = "email" if "email" in error.__cause__.diag.constraint_name else "username"
        raise InvalidParameters(f"{taken}: {getattr(user, taken)!r} is taken") from None
    return _load_users([user.id])[user.id], token


def users(user_ids: Iterable[int]) -> dict[int, dict]:
    """Users by ID, as values of kind USERS; those who do not exist are left out."""
    (found,) = cache.fetch((USERS, user_ids))
    return found


def profile(viewer_id: int, user_id: int) -> tuple[dict, dict]:
    """A user and the user's counts, as values of kinds USERS and COUNTS. Raises NotFound, NotAllowed."""
    found, counts, blocked = cache.fetch((USERS, [user_id]), (COUNTS, [user_id]), (BLOCKED, [user_id]))
    if user_id not in found:
        raise NotFound(f"there is no user {user_id}")
    refuse_blocked(viewer_id, blocked[user_id])
    return found[user_id], counts[user_id]


def refuse_blocked(viewer_id: int, blocked_by_owner: list[int]) -> None:
    """Raises NotAllowed when the viewer is among those whom the owner blocked (a value of kind BLOCKED)."""
    if viewer_id in blocked_by_owner:
        raise NotAllowed("you cannot view this resource")


def add_to_counts(user_id: int, *, media: int = 0, follows: int = 0, followed_by: int = 0) -> None:
    """Adds to a user's counts, within the shard transaction of the row that is counted.

    The caller forgets `COUNTS.key(user_id)` after the commit.
    """
    with connections[database_of(current_shard())].cursor() as cursor:
        # One statement: two requests that count at once must both count, and the first of all finds no row yet.
        cursor.execute(
            """
            INSERT INTO "logical"."accounts_counts" AS counts (user_id, media, follows, followed_by)
            VALUES (%(user_id)s, greatest(0, %(media)s), greatest(0, %(follows)s), greatest(0, %(followed_by)s))
            ON CONFLICT (user_id) DO UPDATE SET
                media = counts.media + %(media)s,
                follows = counts.follows + %(follows)s,
                followed_by = counts.followed_by + %(followed_by)s
            """,
            {"user_id": user_id, "media": media, "follows": follows, "followed_by": followed_by},
        )
