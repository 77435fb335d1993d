"""What is gone is gone for every reader of every endpoint at once, and from the stores soon.

Before each change everybody reads everything, so that all caches are warm and all feeds are there; the change and all
reads after it come while no worker runs. What is looked for are texts that appear nowhere else, in whatever the server
answers. Who sees what of whom otherwise is in test_visibility.py.
"""

import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.conf import settings

from accounts.models import Block, Edge, Follow, Follower
from feeds import home, popular
from feeds.models import Activity
from photos.models import Comment, Like, Liked, Photo, PlacedPhoto, Status, Tagging
from photos.tags import shard_of_tag
from shardmap import photo_map
from shardmap.redis_client import redis_client
from shardmap.shards import on_logical_shard, on_shard
from tests.instagram.routes import filled, routes
from tests.instagram.test_visibility import NOBODYS, PERMALINKS
from tests.notifications.developer import geography_at
from tests.photos.seen import exists
from tests.support import PASSWORD, Person, ctl, eventually, get, photo_id, settled

PATHS = {one.path for one in routes() if "GET" in one.endpoints} | set(PERMALINKS)
# These tell of nobody but by the ID that was asked for.
NAMELESS = NOBODYS | {"v1/users/{user_id}/relationship", "v1/media/{media_id}/shares"}
SUBJECTS = ("one", "fan", "friend")  # of whom is read
VIEWERS = (*SUBJECTS, "stranger", "nobody")  # nobody: a client_id alone


class World:
    """`one` and `fan` follow each other; `friend` and they too; the stranger, a private one, has requests of both.

    Each subject has a photo, which all others like and have commented on.
    """

    def __init__(self) -> None:
        self.name = name = secrets.token_hex(4)
        self.people = {who: Person(f"{name}{who}") for who in VIEWERS[:-1]}
        everybody = list(self.people.values())
        subjects = [self.people[who] for who in SUBJECTS]
        self.people["stranger"].post("accounts/edit", is_private="true")
        for person in subjects:
            for other in everybody:
                if other is not person:
                    person.follow(other)
                    other.post("push/muted", user_id=person.id)
        settled(*everybody)
        for person in everybody:
            person.feed()  # now there is one, to which photos are pushed
        here = {"latitude": f"{random.uniform(-80, 80):.6f}", "longitude": f"{random.uniform(-179, 179):.6f}"}
        self.media = {
            who: self.people[who].publish(caption=self.caption(who), location_name=name, **here) for who in SUBJECTS
        }
        settled(*everybody)
        for media in self.media.values():
            for who, person in self.people.items():
                person.post(f"media/{media['id']}/likes")
                person.post(f"media/{media['id']}/comments", text=self.comment(who, media))
        settled(*everybody)
        self.query = {"lat": here["latitude"], "lng": here["longitude"], "q": name, "count": 100}
        geography, self.path = geography_at(**here), {}
        for who, media in self.media.items():
            self.media[who] = media = self.people[who].get(f"media/{media['id']}")
            self.path[who] = {
                "user_id": self.people[who].id,
                "media_id": media["id"],
                "code": media["link"].rstrip("/").rpartition("/")[2],
                "location_id": media["location"]["id"],
                "geography_id": geography,
                "name": name,
            }

    def caption(self, who: str) -> str:
        return f"a picture by {self.name[::-1]}{who} #{self.name} @{self.name}friend"

    def comment(self, who: str, media: dict) -> str:
        return f"{who} says hello @{self.name}friend to {media['id']}"

    def of_photo(self, who: str) -> set[str]:
        """What nobody may read who may not see somebody's photo."""
        media = self.media[who]
        picture = media["images"]["thumbnail"]["url"].rpartition("/")[2].partition("_")[0]
        return {media["id"], picture, self.caption(who), *(self.comment(by, media) for by in self.people)}

    def of_person(self, who: str) -> set[str]:
        """What nobody may read from whom somebody is hidden."""
        said = {self.comment(who, media) for media in self.media.values()}
        return self.of_photo(who) | said | {self.people[who].username}

    def read(self, viewer: str) -> Iterator[tuple[str, str]]:
        """All that the viewer can ask for: (the path as the route has it, the answer), …"""
        asked = set()
        who = {"client_id": "phone"}
        if viewer in self.people:
            who = {"access_token": self.people[viewer].token}
        for subject in SUBJECTS:
            for path in PATHS:
                url = filled(path, **self.path[subject])
                link = {"url": self.media[subject]["link"]} if path == "oembed" else {}
                if (url, *link.values()) not in asked:
                    asked.add((url, *link.values()))
                    response = get(url, params=who | self.query | link, allow_redirects=False)
                    assert response.status_code < 500, response.text
                    yield path, response.headers.get("Location", "") + response.text

    def found(self, viewer: str, texts: set[str], but: tuple[str, ...] = ()) -> dict[str, set[str]]:
        """Which of these texts the viewer reads, by path."""
        found: dict[str, set[str]] = {}
        for path, answer in self.read(viewer):
            if path not in but and (here := {text for text in texts if text in answer}):
                found[path] = found.get(path, set()) | here
        return found

    def warm_up(self) -> None:
        """Everybody reads everything; what is looked for afterwards is everywhere before."""
        shown = set()
        for viewer in VIEWERS:
            found = self.found(viewer, self.of_person("one"))
            shown |= found.keys() if viewer != "one" else set()
        assert shown == PATHS - NAMELESS

    @contextmanager
    def without_jobs(self) -> Iterator[None]:
        """Inside, no job runs; outside, all of these people's have run."""
        self.warm_up()
        ctl("stop", "worker")
        try:
            yield
        finally:
            ctl("start", "worker")
        settled(*self.people.values())

    def photo_in_stores(self, who: str) -> list[str]:
        """Where something of a photo is still stored."""
        media, owner_id = self.media[who], self.people[who].id
        photo = photo_id(media["id"])
        redis = redis_client(settings.REDIS_FEEDS_URL)
        picture = media["images"]["thumbnail"]["url"].rpartition("/")[2].partition("_")[0]
        with on_shard(owner_id):
            row = Photo.objects.get(id=photo)
        stored = {"row": (row.status, row.caption, row.tags) != (Status.DELETED, "", [])}
        for person in self.people.values():
            with on_shard(person.id):
                for rows in (Like, Comment, Liked, Activity):
                    stored[rows.__name__, person.id] = rows.objects.filter(photo_id=photo).exists()
        with on_logical_shard(shard_of_tag(self.name)):
            stored["tag"] = Tagging.objects.filter(name=self.name, photo_id=photo).exists()
        stored["place"] = PlacedPhoto.objects.filter(photo_id=photo).exists()
        stored["map"] = photo_map.owner_of(photo) is not None
        stored["popular"] = redis.zscore(popular.KEY, media["id"]) is not None
        stored["S3"] = exists(settings.S3_PHOTOS_BUCKET, picture)
        stored["feeds"] = any(photo in self.feed_in_redis(reader) for reader in self.people)
        return [store for store, is_there in stored.items() if is_there]

    def feed_in_redis(self, who: str) -> list[int]:
        entries = redis_client(settings.REDIS_FEEDS_URL).lrange(home._key(self.people[who].id), 0, -1)
        return [int(entry.split(b"_")[0]) for entry in entries]


@pytest.fixture
def world():
    redis_client(settings.REDIS_FEEDS_URL).delete(popular.KEY)  # what other tests liked would fill the page
    return World()


def test_a_deleted_photo(world):
    one, gone = world.people["one"], world.of_photo("one")
    with world.without_jobs():
        one.delete(f"media/{world.media['one']['id']}")
        assert {viewer: found for viewer in VIEWERS if (found := world.found(viewer, gone))} == {}
        assert len(one.get(f"users/{world.people['fan'].id}/media/recent")) == 1
    assert world.photo_in_stores("one") == []
    assert {viewer: found for viewer in VIEWERS if (found := world.found(viewer, gone))} == {}


def test_a_block(world):
    one, fan = world.people["one"], world.people["fan"]

    def seen_of_each_other() -> dict:
        pairs = {"fan": "one", "one": "fan"}
        # To these, whoever asks is nobody.
        return {who: world.found(who, world.of_person(other), but=PERMALINKS) for who, other in pairs.items()}

    with world.without_jobs():
        one.block(fan)
        assert seen_of_each_other() == {"fan": {}, "one": {}}
        assert world.found("friend", world.of_person("one")).keys() > {"v1/users/self/feed", "v1/users/search"}
    assert seen_of_each_other() == {"fan": {}, "one": {}}
    for who, other in (("one", "fan"), ("fan", "one")):
        assert photo_id(world.media[other]["id"]) not in world.feed_in_redis(who)
        with on_shard(world.people[who].id):
            assert not Follow.objects.filter(followee_id=world.people[other].id).exclude(status=Edge.NONE).exists()
            assert not Activity.objects.filter(
                recipient_id=world.people[who].id, actor_id=world.people[other].id, kind="follow"
            ).exists()


def test_a_departed_user(world):
    one, gone = world.people["one"], world.of_person("one")
    with world.without_jobs():
        assert one.call("DELETE", "accounts", form={"password": PASSWORD}).status_code == 200
        assert {viewer: found for viewer in VIEWERS if (found := world.found(viewer, gone))} == {}
        assert world.found("fan", world.of_person("friend")).keys() > {"v1/users/self/feed", "v1/users/search"}
    assert world.photo_in_stores("one") == []
    for shard in range(settings.LOGICAL_SHARDS):
        with on_logical_shard(shard):
            assert not Like.objects.filter(user_id=one.id).exists()
            assert not Comment.objects.filter(user_id=one.id).exists()
            assert not Activity.objects.filter(actor_id=one.id).exists()
            # The last of a chain of jobs, of which the middle one is nobody's here.
            follows = Follow.objects.filter(followee_id=one.id).exclude(status=Edge.NONE)
            followers = Follower.objects.filter(follower_id=one.id).exclude(status=Edge.NONE)
            eventually(lambda rows=(follows, followers): not any(some.exists() for some in rows))
    with on_shard(one.id):
        assert not Liked.objects.filter(user_id=one.id).exists()
        assert not Block.objects.filter(blocker_id=one.id).exists()
        assert not Activity.objects.filter(recipient_id=one.id).exists()
    assert world.feed_in_redis("one") == []
    assert {viewer: found for viewer in VIEWERS if (found := world.found(viewer, gone))} == {}


def test_an_account_that_turned_private(world):
    gone = world.of_photo("one")
    with world.without_jobs():
        world.people["one"].post("accounts/edit", is_private="true")
        for viewer in ("stranger", "nobody"):
            assert world.found(viewer, gone) == {}
        assert "v1/media/popular" not in world.found("fan", gone)
        assert "v1/users/self/feed" in world.found("fan", gone)
    for viewer in ("stranger", "nobody"):
        assert world.found(viewer, gone) == {}


def test_a_deleted_comment(world):
    fan, media = world.people["fan"], world.media["one"]
    text = world.comment("fan", media)
    (said,) = [one for one in fan.get(f"media/{media['id']}/comments") if one["text"] == text]
    with world.without_jobs():
        fan.delete(f"media/{media['id']}/comments/{said['id']}")
        assert {viewer: found for viewer in VIEWERS if (found := world.found(viewer, {text}))} == {}
    with on_shard(world.people["one"].id):
        assert not Activity.objects.filter(comment_id=said["id"]).exists()
