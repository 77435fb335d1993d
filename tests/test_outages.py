"""What users get while a server is dead, and that all is well once it is back."""

import pytest
from django.db.models.functions import Now

from tests.support import Person, ctl, eventually, is_back, jobs_of, jpeg, settled
from workers.models import OutboxJob


def answer_of(one: Person, method: str, path: str, **form) -> dict:
    """The envelope's `meta`. (`call` itself fails if no answer comes in time.)"""
    response = one.call(method, path, form=form or None)
    meta = response.json()["meta"]
    assert meta["code"] == response.status_code
    return meta


@pytest.fixture
def scene(person):
    """Somebody with a ready photo, and a follower; nothing is in the making."""
    one, follower = person(), person()
    follower.follow(one)
    media = one.take()
    settled(one, follower)
    assert follower.feed() == [media["id"]]
    return one, follower, media


@pytest.mark.parametrize("server", ["postgres_a", "postgres_b", "pgbouncer"])
def test_postgres_dead_is_a_503_and_back_is_well(scene, stopped, server):
    one, follower, _ = scene
    upload_ids = {person: person.upload(jpeg()) for person in scene[:2]}
    stopped(server)
    refused = [
        meta
        for person in (one, follower)
        for meta in [answer_of(person, "POST", "media", upload_id=upload_ids[person])]
        if meta["code"] != 200
    ]
    assert refused, "at least one of them lives on the dead server"
    assert {(meta["code"], meta["error_type"]) for meta in refused} == {(503, "APIError")}
    ctl("start", server)
    eventually(is_back, 30)
    for person in (one, follower):
        again = person.post("media", upload_id=upload_ids[person])
        eventually(lambda person=person, again=again: person.ready(again["id"]), 20)


@pytest.mark.parametrize("server", ["postgres_a", "postgres_b", "pgbouncer", "redis_feeds", "redis_shardmap"])
def test_a_server_that_is_killed_is_back_by_itself(scene, server):
    one, follower, media = scene
    upload_id = one.upload(jpeg())
    ctl("kill", server)
    eventually(is_back, 30)
    # Its processes may outlive the signal for a moment, and all seem well: who is refused now asks again.
    newer = eventually(lambda: one.call("POST", "media", form={"upload_id": upload_id}).json().get("data"), 30)

    def feed() -> list[str]:
        return [media["id"] for media in follower.call("GET", "users/self/feed").json().get("data") or []]

    eventually(lambda: feed() == [newer["id"], media["id"]], 60)  # a job that lost its database waits for its lease


def test_memcached_dead_changes_no_answer(scene, stopped):
    one, follower, media = scene
    stopped("memcached_1", "memcached_2")
    assert follower.feed() == [media["id"]]
    assert follower.get(f"media/{media['id']}")["id"] == media["id"]
    newer = one.take()
    eventually(lambda: follower.feed() == [newer["id"], media["id"]])
    assert one.counts() == {"media": 2, "follows": 0, "followed_by": 1}
    follower.unfollow(one)
    assert follower.feed() == []
    ctl("start", "memcached_1", "memcached_2")
    settled(one, follower)
    assert follower.feed() == []
    assert one.counts() == {"media": 2, "follows": 0, "followed_by": 0}


def test_both_redis_dead_photos_are_published_and_read(scene, stopped):
    one, follower, media = scene
    stopped("redis_feeds", "redis_shardmap")
    newer = one.take()
    assert follower.feed() == [newer["id"], media["id"]]
    bare = newer["id"].split("_")[0]
    assert follower.get(f"media/{bare}")["id"] == newer["id"]


def test_gearmand_dead_costs_ten_photos_nothing_but_delay(scene, stopped):
    one, follower, media = scene
    ctl("stop", "gearmand")
    stopped("gearmand")
    published = [one.publish()["id"] for _ in range(10)]
    ctl("start", "gearmand")
    eventually(lambda: follower.feed() == [*published[::-1], media["id"]], 40)
    assert one.counts()["media"] == 11


def test_workers_killed_at_work_lose_nothing(scene):
    one, follower, media = scene
    published = []
    for _ in range(6):
        published.append(one.publish()["id"])
        ctl("kill", "worker")
    for row in jobs_of(one.id):  # a job that died with its worker is taken up again when its lease has ended: now
        OutboxJob.objects.using(row._state.db).filter(id=row.id).update(due_at=Now(), held_until=Now())
    eventually(lambda: follower.feed() == [*published[::-1], media["id"]], 60)
    assert one.counts()["media"] == 7


def test_s3_dead_is_a_503_and_what_was_published_is_processed_when_it_is_back(scene, stopped):
    one, follower, media = scene
    published, upload_id = one.publish(), one.upload(jpeg())
    stopped("seaweedfs")
    assert answer_of(one, "POST", "media", upload_id=upload_id)["code"] == 503
    assert follower.feed()[-1] == media["id"]
    ctl("start", "seaweedfs")
    eventually(is_back, 40)
    eventually(lambda: one.ready(published["id"]), 40)


def test_the_relay_finishes_what_the_app_could_not_submit(scene, stopped):
    """The app dies between its commit and the submit: as good as gearmand being away for that moment."""
    one, follower, media = scene
    stopped("gearmand", "relay")
    newer = one.publish()
    ctl("start", "gearmand")
    assert one.get(f"media/{newer['id']}")["status"] == "processing"
    ctl("start", "relay")
    eventually(lambda: follower.feed() == [newer["id"], media["id"]], 20)
