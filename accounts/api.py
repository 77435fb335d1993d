"""The endpoints about users and their relationships. Their docstrings are the API's reference (/developer/)."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from accounts import graph, services
from accounts.errors import InvalidParameters
from accounts.schemas import Login, NewToken, Profile, Relationship, User, full_user, short_user
from accounts.tokens import Caller, Viewer, require_phone
from accounts.types import Count, Cursor, Id
from shardmap.ids import MAX_ID

FullName = Annotated[str, StringConstraints(max_length=64)]
Website = Annotated[str, Field(max_length=200, pattern=r"^(https?://[^\s<>\"']+)?$")]


def get_user(viewer: Caller, user_id: Id) -> Profile:
    """A user's profile."""
    return full_user(*services.profile(viewer.user_id, user_id))


def search_users(viewer: Caller, q: str, count: Count = 20) -> list[User]:
    """Users whose names begin with `q`."""
    return [short_user(user, bio=True) for user in services.search(viewer.user_id, q, count)]


def sign_up(client_id: str, username: str, password: str, email: str, full_name: FullName = "") -> Login:
    """Makes an account. For the phone app alone: `client_id` is `phone`."""
    user, token = services.sign_up(client_id, username, password, email, full_name)
    return {"access_token": token, "user": short_user(user, bio=True)}


def edit_profile(
    viewer: Viewer,
    full_name: FullName | None = None,
    bio: Annotated[str, StringConstraints(max_length=150)] | None = None,
    website: Website | None = None,
    is_private: bool | None = None,
) -> User:
    """Changes what is given of the user's own profile.

    A private account's photos are seen by its followers alone, and whom to have as one, its owner approves. For the
    phone app alone.
    """
    require_phone(viewer)
    given = {"full_name": full_name, "bio": bio, "website": website, "is_private": is_private}
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        raise InvalidParameters(f"give at least one of {', '.join(given)}")
    return short_user(services.edit(viewer.user_id, **changes), bio=True)


def change_password(viewer: Viewer, old_password: str, new_password: str) -> NewToken:
    """Changes the password, and ends all tokens of the user. For the phone app alone."""
    require_phone(viewer)
    return {"access_token": services.change_password(viewer.user_id, old_password, new_password)}


def delete_account(viewer: Viewer, password: str) -> None:
    """Deletes your account, with all that you published, liked and said. For the phone app alone."""
    require_phone(viewer)
    services.delete_account(viewer.user_id, password)


def follows(viewer: Caller, user_id: Id, count: Count = 20, cursor: Id = MAX_ID) -> tuple[list[User], Cursor]:
    """Whom a user follows, latest first."""
    return _people(*graph.follows_of(viewer.user_id, user_id, cursor, count))


def followed_by(viewer: Caller, user_id: Id, count: Count = 20, cursor: Id = MAX_ID) -> tuple[list[User], Cursor]:
    """Who follows a user, latest first."""
    return _people(*graph.followers_of(viewer.user_id, user_id, cursor, count))


def requested_by(viewer: Viewer, count: Count = 20, cursor: Id = MAX_ID) -> tuple[list[User], Cursor]:
    """Who has asked to follow the user, whose account is private."""
    return _people(*graph.requests_to(viewer.user_id, cursor, count))


def _people(users: list[dict], cursor: int | None) -> tuple[list[User], Cursor]:
    return [short_user(user, bio=True) for user in users], {} if cursor is None else {"cursor": str(cursor)}


def get_relationship(viewer: Viewer, user_id: Id) -> Relationship:
    """How you and another user stand to each other."""
    return graph.relationship(viewer.user_id, user_id)


ACTIONS = {
    "follow": graph.follow,
    "unfollow": graph.unfollow,
    "block": graph.block,
    "unblock": graph.unblock,
    "approve": graph.approve,
    "ignore": graph.ignore,
}


def change_relationship(
    viewer: Viewer, user_id: Id, action: Literal["follow", "unfollow", "block", "unblock", "approve", "ignore"]
) -> Relationship:
    """Follows, blocks, or answers who has asked to follow you.

    To follow a private account is to ask its owner, who may `approve` or `ignore` that. Between two of whom one has
    blocked the other, neither follows the other.
    """
    ACTIONS[action](viewer.user_id, user_id)
    return graph.relationship(viewer.user_id, user_id)


# Each is a guess at the password: as few of a token as of a username at the login.
change_password.limited_as = delete_account.limited_as = "passwords"
