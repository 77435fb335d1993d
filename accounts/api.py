"""The endpoints about users and their relationships."""

from typing import Annotated, Literal

from pydantic import StringConstraints

from accounts import graph, services
from accounts.schemas import full_user, short_user
from accounts.tokens import Viewer
from accounts.types import Id


def get_user(viewer: Viewer, user_id: Id) -> dict:
    return full_user(*services.profile(viewer.user_id, user_id))


def sign_up(
    client_id: str,
    username: str,
    password: str,
    email: str,
    full_name: Annotated[str, StringConstraints(max_length=64)] = "",
) -> dict:
    user, token = services.sign_up(client_id, username, password, email, full_name)
    return {"access_token": token, "user": short_user(user, bio=True)}


def get_relationship(viewer: Viewer, user_id: Id) -> dict:
    return graph.relationship(viewer.user_id, user_id)


ACTIONS = {
    "follow": graph.follow,
    "unfollow": graph.unfollow,
    "block": graph.block,
    "unblock": graph.unblock,
}


def change_relationship(viewer: Viewer, user_id: Id, action: Literal["follow", "unfollow", "block", "unblock"]) -> dict:
    ACTIONS[action](viewer.user_id, user_id)
    return graph.relationship(viewer.user_id, user_id)
