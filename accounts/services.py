"""Sign-up, profiles, and finding users."""

import datetime
import re
from collections.abc import Iterable

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import IntegrityError, transaction

from accounts import tokens
from accounts.cached import COUNTS, USERS
from accounts.errors import InvalidClient, InvalidParameters, NotFound
from accounts.models import User
from accounts.visibility import Sight, known, sight_of
from shardmap import cache
from workers.outbox import enqueue, enqueue_in

USERNAME = re.compile(r"[a-z0-9._]{1,30}")
ROOMS = ("accounts", "photos", "feeds", "notifications")  # that hold something of a user
AFTERWARDS = datetime.timedelta(minutes=1)  # longer than any request or mirroring takes
LONGEST_PASSWORD = 128  # hashing is dear; a megabyte of password would be an attack


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
    _set_password(user, password)
    try:
        with transaction.atomic():
            user.save()
            token = tokens.issue(user, client_id)
    except IntegrityError as error:
        taken = "email" if "email" in error.__cause__.diag.constraint_name else "username"
        raise InvalidParameters(f"{taken}: {getattr(user, taken)!r} is taken") from None
    return users([user.id])[user.id], token


def users(user_ids: Iterable[int]) -> dict[int, dict]:
    """Users by ID, as values of kind USERS; those who do not exist are left out."""
    (found,) = cache.fetch((USERS, user_ids))
    return found


def user(user_id: int) -> dict:
    """A user, as a value of kind USERS. Raises NotFound."""
    found = users([user_id])
    if user_id not in found:
        raise NotFound(f"there is no user {user_id}")
    return found[user_id]


def users_named(names: Iterable[str]) -> dict[str, int]:
    """The IDs of users by their names, which are given in lower case; names that nobody has are left out."""
    return dict(User.objects.filter(username__in=names, is_active=True).values_list("username", "id"))


def profile(viewer_id: int | None, user_id: int) -> tuple[dict, dict]:
    """A user and the user's counts, as values of kinds USERS and COUNTS. Raises NotFound, NotAllowed."""
    found, counts, *sight = cache.fetch((USERS, [user_id]), (COUNTS, [user_id]), *sight_of(viewer_id))
    if user_id not in found:
        raise NotFound(f"there is no user {user_id}")
    Sight.of(viewer_id, *sight).require_known(found[user_id])
    return found[user_id], counts[user_id]


def search(viewer_id: int | None, text: str, count: int) -> list[dict]:
    """Users whose names begin with a text, as values of kind USERS; those with exactly that name first."""
    prefix = text.lower().lstrip("@")
    if not USERNAME.fullmatch(prefix):
        return []
    names = User.objects.filter(username__startswith=prefix).order_by("username")
    # Some may be hidden from this viewer; twice as many leave enough to fill the page, or nearly.
    ids = list(names.values_list("id", flat=True)[: 2 * count])
    found = known(viewer_id, ids)
    return [found[user_id] for user_id in ids if user_id in found][:count]


def edit(user_id: int, **changes) -> dict:
    """Changes a user's full_name, bio, website or is_private; returns the value of kind USERS."""
    with transaction.atomic():
        User.objects.filter(id=user_id, is_active=True).update(**changes)
        enqueue("accounts.forget", keys=[USERS.key(user_id)])
        if changes.get("is_private") is False:
            enqueue("accounts.approve_all", user_id=user_id)
    cache.forget(USERS.key(user_id))
    return user(user_id)


def set_profile_picture(user_id: int, path: str) -> bool:
    """Changes what `short_user` shows, in the transaction of the caller; returns False if the user is gone."""
    enqueue("accounts.forget", keys=[USERS.key(user_id)])
    return bool(User.objects.filter(id=user_id, is_active=True).update(profile_picture=path))


def change_password(user_id: int, old: str, new: str) -> str:
    """Gives a user another password, and ends every session; returns a new access token. Raises InvalidParameters."""
    user = _with_password(user_id, old, "old_password")
    _set_password(user, new, "new_password")
    with transaction.atomic():
        user.save(update_fields=["password"])
        tokens.revoke_all(user_id)
        return tokens.issue(user, tokens.PHONE)


def delete_account(user_id: int, password: str) -> None:
    """Takes a user off the site at once, and frees the name; jobs remove all else. Raises InvalidParameters."""
    user = _with_password(user_id, password, "password")
    user.is_active = False
    user.username = user.email = f"deleted:{user_id}"  # which nobody can have as a name
    user.full_name = user.bio = user.website = user.profile_picture = ""
    user.set_unusable_password()
    with transaction.atomic():
        user.save()
        tokens.revoke_all(user_id)
        enqueue("accounts.forget", keys=[USERS.key(user_id)])
        for room in ROOMS:
            enqueue(f"{room}.erase", user_id=user_id)
            enqueue_in(AFTERWARDS, f"{room}.erase", user_id=user_id)  # what was under way when the account went
    cache.forget(USERS.key(user_id))


def _with_password(user_id: int, password: str, parameter: str) -> User:
    """The user whose password this is. Raises InvalidParameters."""
    user = User.objects.get(id=user_id)
    if len(password) > LONGEST_PASSWORD or not user.check_password(password):
        raise InvalidParameters(f"{parameter}: is wrong")
    return user


def _set_password(user: User, password: str, parameter: str = "password") -> None:
    if len(password) > LONGEST_PASSWORD:
        raise InvalidParameters(f"{parameter}: longer than {LONGEST_PASSWORD} characters")
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise InvalidParameters(f"{parameter}: {' '.join(error.messages)}") from None
    user.set_password(password)
