"""Each list endpoint asks every server as often for a long page as for a short one."""

import random
import secrets
import socket
from collections import Counter, defaultdict
from contextlib import ExitStack
from itertools import product, zip_longest
from urllib.parse import urlsplit

import pytest
from django.conf import settings
from django.db import connections
from django.test import Client

from feeds import activity, home
from instagram.api.dispatch import parameters
from photos import likes, tags
from photos.cached import LIKERS_SHOWN
from shardmap import cache
from shardmap.redis_client import redis_client
from shardmap.shards import database_of, shard_of
from tests.instagram import routes
from tests.notifications.developer import geography_at
from tests.support import Person, eventually, photo_id, settled

SHORT, LONG = 5, 12
# Round trips to one server, by where what is shown is known.
MOST = {"nowhere": 12, "in Memcached": 4, "in this process": 3}


class RoundTrips(ExitStack):
    """Counts the statements to each database, and how often an answer of each other server is waited for."""

    def __enter__(self):
        super().__enter__()
        self.counted: Counter[str] = Counter()
        self.statements: list[tuple[str, str]] = []
        self.asked: set[socket.socket] = set()
        patch = self.enter_context(pytest.MonkeyPatch.context())
        for name in ("send", "sendall"):
            patch.setattr(socket.socket, name, self._noting(name, self._sent), raising=False)
        for name in ("recv", "recv_into"):
            patch.setattr(socket.socket, name, self._noting(name, self._received), raising=False)
        for database in connections:
            self.enter_context(connections[database].execute_wrapper(self._executed))
        return self

    def _noting(self, name: str, note):
        original = getattr(socket.socket, name)

        def noting(sock, *args, **kwargs):
            note(sock)
            return original(sock, *args, **kwargs)

        return noting

    def _sent(self, sock) -> None:
        self.asked.add(sock)

    def _received(self, sock) -> None:
        if sock in self.asked:
            self.asked.remove(sock)
            self.counted[f"port {sock.getpeername()[1]}"] += 1

    def _executed(self, execute, sql, params, many, context):
        alias = context["connection"].alias
        self.counted[alias] += 1
        self.statements.append((alias, sql))
        return execute(sql, params, many, context)


class World:
    """Somebody with a dozen of whatever can be listed, of people in many shards."""

    def __init__(self) -> None:
        name = _name()
        viewer = Person()
        people = [Person(f"{name}{n}") for n in range(LONG)]
        strangers = [Person() for _ in range(LONG)]
        # Neighbours are in different databases, so that a short page already asks all of them.
        by_database = defaultdict(list)
        for one in people:
            by_database[database_of(shard_of(one.id))].append(one)
        people = [one for some in zip_longest(*by_database.values()) for one in some if one]
        for one in people:
            viewer.follow(one)
            one.follow(viewer)
        settled(viewer, *people)
        viewer.post("accounts/edit", is_private="true")
        for one in strangers:
            one.follow(viewer)
        here = {"latitude": f"{random.uniform(-80, 80):.6f}", "longitude": f"{random.uniform(-179, 179):.6f}"}
        for n in range(LONG):
            viewer.publish(caption=f"#{name}{n}", location_name=f"{name} {n}", **here)
        settled(viewer)
        photos = [one.publish(caption=f"#{name}", location_name=name, **here) for one in people]
        settled(viewer, *people, *strangers)
        media_id = photos[0]["id"]
        for one in people:
            likes.like(one.id, photo_id(media_id))
            one.post(f"media/{media_id}/comments", text="hello")
        # Who is shown beside the photos is nobody whom the page has loaded already, however long it is.
        for media, one in product(photos, [viewer, *strangers[:LIKERS_SHOWN]]):
            likes.like(one.id, photo_id(media["id"]))
        for media, one in zip(photos, people, strict=True):
            one.post(f"media/{media['id']}/comments", text=f"@{viewer.username}")
        settled(viewer, *people)
        eventually(lambda: len(viewer.get("tags/search", q=name)) > LONG)  # by jobs that name no user
        self.path = {
            "user_id": viewer.id,
            "media_id": media_id,
            "location_id": viewer.get(f"media/{media_id}")["location"]["id"],
            "geography_id": geography_at(**here),
            "name": name,
        }
        self.query = {"access_token": viewer.token, "q": name, "lat": here["latitude"], "lng": here["longitude"]}

    def ask(self, path: str, count: int) -> RoundTrips:
        with RoundTrips() as trips:
            response = Client().get(routes.filled(path, **self.path), self.query | {"count": count})
        assert len(response.json()["data"]) == count
        return trips


def _name() -> str:
    """A name whose tags are in different databases too, those of a short page as well."""
    while True:
        name = f"w{secrets.token_hex(5)}"
        found_first = sorted(f"{name}{n}" for n in ("", *range(LONG)))[:SHORT]
        if {database_of(tags.shard_of_tag(tag)) for tag in found_first} == set(settings.SHARD_SERVERS):
            return name


@pytest.fixture(scope="module")
def world():
    return World()


LISTS = [
    "v1/users/self/feed",
    "v1/users/{user_id}/media/recent",
    "v1/users/self/media/liked",
    "v1/users/search",
    "v1/users/{user_id}/follows",
    "v1/users/{user_id}/followed-by",
    "v1/users/self/requested-by",
    "v1/users/self/activity",
    "v1/media/{media_id}/likes",
    "v1/media/{media_id}/comments",
    "v1/media/popular",
    "v1/media/search",
    "v1/locations/search",
    "v1/locations/{location_id}/media/recent",
    "v1/geographies/{geography_id}/media/recent",
    "v1/tags/search",
    "v1/tags/{name}/media/recent",
]


def test_no_list_is_left_out():
    lists = [
        one.path for one in routes.routes() if "GET" in one.endpoints and "count" in parameters(one.endpoints["GET"][1])
    ]
    assert sorted(LISTS) == sorted(lists)


@pytest.mark.parametrize("known", MOST)
@pytest.mark.parametrize("path", LISTS)
def test_a_long_page_takes_as_many_round_trips_as_a_short_one(world, monkeypatch, path, known):
    # All in one Memcached: which of several are asked depends on the keys' hashes.
    monkeypatch.setattr(settings, "MEMCACHED", settings.MEMCACHED[:1])
    trips, viewer_id = {}, world.path["user_id"]
    for count in (SHORT, LONG):
        for _ in range(3):  # Memcached is filled, then this process
            world.ask(path, count)
        if known == "nowhere":
            cache._client(settings.MEMCACHED[0]).flush_all(noreply=False)
            redis_client(settings.REDIS_FEEDS_URL).delete(home._key(viewer_id), activity._key(viewer_id))
        if known != "in this process":
            cache._copies._start_anew(cache._copies._last)
        trips[count] = world.ask(path, count)
    assert trips[LONG].counted == trips[SHORT].counted, trips[LONG].statements
    assert max(trips[LONG].counted.values()) <= MOST[known]


def test_a_warm_page_of_the_feed_is_one_question_to_redis(world):
    for _ in range(3):
        world.ask("v1/users/self/feed", LONG)
    assert world.ask("v1/users/self/feed", LONG).counted == {f"port {urlsplit(settings.REDIS_FEEDS_URL).port}": 1}
