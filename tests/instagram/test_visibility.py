"""Who sees what: every GET of the API, asked by everybody whom an account may mean something to.

A new endpoint gets a row in MATRIX; one that shows nothing of other people, a line in NOBODYS.
"""

import random
import secrets

import pytest
from django.conf import settings

from shardmap import cache
from tests.instagram.routes import filled, routes
from tests.notifications.developer import geography_at
from tests.support import PASSWORD, Person, get, settled

KINDS = ("owner", "follower", "requester", "stranger", "blocked", "blocker", "nobody")  # nobody: a client_id alone
LETTERS = {
    "APINotAllowedError": "R",
    "APINotFoundError": "N",
    "OAuthParameterException": "T",
    "OAuthAccessTokenException": "X",
}

# For people and for other sites: whoever asks is nobody to them.
PERMALINKS = ("p/{code}", "p/{code}/media", "oembed")
# What each of KINDS gets of an account that is public, of one that is private, and of one that was deleted:
# S sees it, - does not, R is refused, N finds nothing, T needs a token, X has one that was ended.
# What "it" is, the first word says (`World.shown`).
MATRIX = {
    "v1/users/{user_id}": ("username", "SSSSRRS", "SSSSRRS", "XNNNNNN"),
    "v1/users/{user_id}/relationship": ("status", "SSSSRST", "SSSSRST", "XNNNNNT"),
    "v1/users/search": ("username", "SSSS--S", "SSSS--S", "X------"),
    "v1/users/{user_id}/follows": ("friend", "SSSSRRS", "SSRRRRR", "XNNNNNN"),
    "v1/users/{user_id}/followed-by": ("friend", "SSSSRRS", "SSRRRRR", "XNNNNNN"),
    "v1/users/{user_id}/media/recent": ("media", "SSSSRRS", "SSRRRRR", "XNNNNNN"),
    "v1/media/{media_id}": ("media", "SSSSRRS", "SSRRRRR", "XNNNNNN"),
    "v1/media/shortcode/{code}": ("media", "SSSSRRS", "SSRRRRR", "XNNNNNN"),
    "v1/media/{media_id}/likes": ("friend", "SSSSRRS", "SSRRRRR", "XNNNNNN"),
    "v1/media/{media_id}/shares": ("shares", "SRRRRRT", "SRRRRRT", "XNNNNNT"),
    "v1/media/{media_id}/comments": ("comment", "SSSSRRS", "SSRRRRR", "XNNNNNN"),
    "v1/media/search": ("media", "SSSS--S", "SS-----", "X------"),
    "v1/media/popular": ("media", "SSSS--S", "-------", "X------"),
    "v1/locations/{location_id}/media/recent": ("media", "SSSS--S", "SS-----", "X------"),
    "v1/geographies/{geography_id}/media/recent": ("media", "SSSS--S", "SS-----", "X------"),
    "v1/tags/{name}/media/recent": ("media", "SSSS--S", "SS-----", "X------"),
    "v1/users/self/feed": ("media", "SS----T", "SS----T", "X-----T"),
    "v1/users/self/media/liked": ("media", "SSSS--T", "SS----T", "X-----T"),
    "v1/users/self/requested-by": ("requester", "------T", "S-----T", "X-----T"),
    "v1/users/self/activity": ("media", "SSSS--T", "SS----T", "X-----T"),
    "v1/push/muted": ("username", "-SSS--T", "-SSS--T", "X-----T"),
    **dict.fromkeys(PERMALINKS, ("picture", "SSSSSSS", "NNNNNNN", "NNNNNNN")),
}
NOBODYS = {
    "v1/locations/search",
    "v1/locations/{location_id}",
    "v1/tags/search",
    "v1/tags/{name}",
    "v1/subscriptions",
    "v1/shares/accounts",
    "v1/accounts/avatar",
    "v1/push/devices",
    "v1/push/settings",
}
ROWS = {path: dict(zip(("shown", "public", "private", "deleted"), row, strict=True)) for path, row in MATRIX.items()}


class World:
    """An account with a photo, one viewer of each kind, and a friend whom all know.

    And two ghosts, of whom no viewer but the owner may read: one has blocked them all, one is blocked by them all.

    Before anybody is blocked, everybody is mentioned, likes the photos, and mutes those who took them.
    """

    def __init__(self) -> None:
        self.name = name = secrets.token_hex(4)
        self.owner, self.friend = Person(f"{name}owner"), Person(f"{name}friend")
        ghosts = [Person(f"{name}ghost{n}") for n in range(2)]
        self.viewers = {"owner": self.owner} | {kind: Person() for kind in KINDS[1:-1]}
        everybody = [*self.viewers.values(), self.friend, *ghosts]
        for one in (self.viewers["follower"], self.friend, *ghosts):
            one.follow(self.owner)
        for one in (self.friend, *ghosts):
            self.owner.follow(one)
            self.viewers["follower"].follow(one)
        self.here = {"latitude": f"{random.uniform(-80, 80):.6f}", "longitude": f"{random.uniform(-179, 179):.6f}"}
        caption = f"#{name} {' '.join(f'@{one.username}' for one in self.viewers.values())}"
        self.media, *theirs = (
            one.publish(caption=caption, location_name=name, **self.here) for one in (self.owner, *ghosts)
        )
        settled(*everybody)
        for one in everybody:
            for media in (self.media, *theirs):
                one.post(f"media/{media['id']}/likes")
            for muted in {self.owner, *ghosts} - {one}:
                one.post("push/muted", user_id=muted.id)
        said = self.friend.post(f"media/{self.media['id']}/comments", text="what a day")
        for ghost in ghosts:
            ghost.post(f"media/{self.media['id']}/comments", text="boo")
        self.owner.block(self.viewers["blocked"])
        self.viewers["blocker"].block(self.owner)
        for one in self.viewers.values():
            if one is not self.owner:
                ghosts[0].block(one)
                one.block(ghosts[1])
        settled(*everybody)
        self.shown = {
            "username": self.owner.username,
            "status": "outgoing_status",
            "shares": '"data":[]',
            "friend": self.friend.username,
            "media": self.media["id"],
            "comment": said["id"],
            "requester": self.viewers["requester"].username,
        }
        ready = self.owner.get(f"media/{self.media['id']}")
        self.shown["picture"] = ready["images"]["thumbnail"]["url"].rpartition("_")[0]
        self.hidden = [ghost.username for ghost in ghosts] + [media["id"] for media in theirs]
        self.path = {
            "user_id": self.owner.id,
            "media_id": self.media["id"],
            "code": self.media["link"].rstrip("/").rpartition("/")[2],
            "location_id": ready["location"]["id"],
            "geography_id": geography_at(**self.here),
            "name": name,
        }

    def become(self, *, private: bool) -> None:
        self.owner.post("accounts/edit", is_private=str(private).lower())

    def answers(self, path: str, kinds: tuple[str, ...] = KINDS) -> str:
        """What each kind of viewer gets of a path, a letter each."""
        return "".join(self.answer(path, kind) for kind in kinds)

    def answer(self, path: str, kind: str) -> str:
        viewer = self.viewers.get(kind)
        who = {"access_token": viewer.token} if viewer else {"client_id": "phone"}
        query = {"lat": self.here["latitude"], "lng": self.here["longitude"], "q": self.name, "url": self.media["link"]}
        response = get(filled(path, **self.path), params=who | query | {"count": 100}, allow_redirects=False)
        text = response.headers.get("Location", "") + response.text
        if viewer not in (None, self.owner) and path not in PERMALINKS:
            assert not [secret for secret in self.hidden if secret in text], f"{kind} reads of a ghost: {text}"
        if response.status_code in (200, 302):
            return "S" if self.shown[ROWS[path]["shown"]] in text else "-"
        if response.status_code == 404:
            return "N"
        assert self.media["caption"]["text"] not in response.text
        return LETTERS[response.json()["meta"]["error_type"]]


@pytest.fixture(scope="module")
def public():
    return World()


@pytest.fixture(scope="module")
def private():
    world = World()
    world.become(private=True)
    world.viewers["requester"].follow(world.owner)
    settled(world.owner, world.viewers["requester"])
    return world


@pytest.mark.parametrize("account", ["public", "private"])
@pytest.mark.parametrize("path", MATRIX)
def test_who_sees_what(request, account, path):
    world = request.getfixturevalue(account)
    for server in settings.MEMCACHED:
        cache._client(server).flush_all(noreply=False)
    for when in ("read", "cached"):
        found = world.answers(path)
        assert found == ROWS[path][account], f"{found}, {when}; {ROWS[path][account]} is right"


@pytest.mark.parametrize("account", ["public", "private"])
@pytest.mark.parametrize("kind", KINDS[:-1])
@pytest.mark.parametrize("action", ["likes", "comments"])
def test_who_may_respond(request, account, kind, action):
    world = request.getfixturevalue(account)
    response = world.viewers[kind].call("POST", f"media/{world.media['id']}/{action}", form={"text": "hello"})
    seen = ROWS["v1/media/{media_id}"][account][KINDS.index(kind)] == "S"
    assert seen if response.status_code == 200 else response.json()["meta"]["error_type"] == "APINotAllowedError"


def test_a_change_counts_at_once_and_everywhere():
    """Whatever was cached before: each viewer has read everything, and reads it again after each change."""
    world = World()
    owner, viewers = world.owner, world.viewers
    changes = {
        "private": lambda: world.become(private=True),
        "public again": lambda: world.become(private=False),
        "the owner blocks two": lambda: [owner.block(viewers[kind]) for kind in ("stranger", "follower")],
        "another blocks the owner": lambda: viewers["requester"].block(owner),
        "deleted": lambda: owner.call("DELETE", "accounts", form={"password": PASSWORD}),
        "deleted, with all its jobs": lambda: settled(owner),
    }
    # As whom each of KINDS sees the account after that.
    columns = dict.fromkeys(changes, KINDS)
    columns["the owner blocks two"] = ("owner", "blocked", "requester", "blocked", "blocked", "blocker", "nobody")
    columns["another blocks the owner"] = ("owner", "blocked", "blocker", "blocked", "blocked", "blocker", "nobody")
    accounts = {"private": "private", "deleted": "deleted", "deleted, with all its jobs": "deleted"}
    asked = [path for path in MATRIX if path != "v1/users/self/requested-by"]  # which is a job's
    wrong = {}
    for path in asked:
        world.answers(path)
    for name, change in changes.items():
        change()
        for path in asked:
            column = ROWS[path][accounts.get(name, "public")]
            expected = "".join(column[KINDS.index(kind)] for kind in columns[name])
            if (found := world.answers(path)) != expected:
                wrong[name, path] = f"{found}, {expected} is right"
    assert wrong == {}


def test_no_endpoint_is_left_out():
    paths = {one.path for one in routes() if "GET" in one.endpoints}
    assert paths | set(PERMALINKS) == set(MATRIX) | NOBODYS
