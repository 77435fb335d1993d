"""Real-time updates: from a published photo to the signed POST at the developer's callback."""

import datetime
import json
import random
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import requests
from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now

from notifications import updates
from notifications.models import Callback, Update
from photos import services, tags
from tests.accounts.test_oauth import shown
from tests.notifications.developer import Developer
from tests.support import Person, ctl, eventually, photo_id, settled
from workers.models import OutboxJob
from workers.outbox import enqueue

METRE = 1 / 111_195  # degrees of latitude


def new_tag() -> str:
    return f"t{secrets.token_hex(6)}"


def somewhere() -> tuple[float, float]:
    """A place that no other test has been at."""
    return random.uniform(-70, 70), random.uniform(-179, 179)


def take(one: Person, **params) -> str:
    """Publishes a photo, and waits until all that follows has been done; the media's ID."""
    media = one.take(**params)
    settled(one)
    return media["id"]


def told(developer: Developer, subscription: dict, *media: str) -> None:
    """Waits until a subscription was told of these media; there must be no others, and none twice.

    After an answer that took its time, 4 s perhaps (Handler), a callback rests for ten times as long.
    """
    eventually(lambda: set(media) <= set(developer.told_of(subscription)), 60, f"{subscription} is told of {media}")
    assert sorted(developer.told_of(subscription)) == sorted(media)


def waiting(subscription: dict) -> int:
    return Update.objects.filter(subscription_id=subscription["id"], is_done=False).count()


@contextmanager
def held(developer: Developer) -> Iterator[dict]:
    """What comes for the callback meanwhile waits, as if a request were under way; the arguments of the job that is."""
    callback = Callback.objects.get(url=developer.url())
    eventually(lambda: Callback.objects.filter(id=callback.id, is_busy=False).update(is_busy=True), what="it is idle")
    callback.refresh_from_db()
    turn = {"callback_id": callback.id, "turn": callback.turn}
    yield turn
    with transaction.atomic():
        enqueue("notifications.deliver", **turn)


def nothing_more(developer: Developer, subscription: dict, *media: str) -> None:
    """Nothing waits for a subscription, and it was told of these media alone."""
    eventually(lambda: not waiting(subscription), 15, f"nothing waits for {subscription}")
    assert sorted(developer.told_of(subscription)) == sorted(media)


# What is told to whom.


def test_a_user_subscription_is_told_of_all_who_authorized_the_client(developer):
    public, private, stranger = Person(), Person(), Person()
    private.post("accounts/edit", is_private="true")
    for one in (public, private):
        developer.allowed_by(one)
    subscription = developer.subscribe("user")
    began = int(time.time())
    media = [take(one) for one in (stranger, public, private)]
    told(developer, subscription, *media[1:])
    first, second = developer.told(subscription)
    assert first == {
        "subscription_id": subscription["id"],
        "object": "user",
        "object_id": str(public.id),
        "changed_aspect": "media",
        "time": first["time"],
        "data": {"media_id": media[1]},
    }
    assert began <= first["time"] <= time.time()
    assert second["object_id"] == str(private.id)


def test_a_tag_subscription_is_told_of_captions_and_of_the_owners_comments(developer):
    one, other, name = Person(), Person(), new_tag()
    subscription = developer.subscribe("tag", object_id=name)
    by_caption = take(one, caption=f"#{name.upper()} #{name} #another")
    told(developer, subscription, by_caption)
    assert developer.told(subscription)[0]["object_id"] == name
    media = take(one, caption="nothing")
    other.post(f"media/{media}/comments", text=f"not mine #{name}")
    one.post(f"media/{media}/comments", text=f"forgot #{name}")
    told(developer, subscription, by_caption, media)
    one.post(f"media/{by_caption}", caption=f"still #{name}")
    one.post(f"media/{by_caption}/comments", text=f"again #{name}")
    settled(one)
    nothing_more(developer, subscription, by_caption, media)


def test_a_location_and_a_geography_are_told_of_what_is_taken_there(developer):
    one, (lat, lng) = Person(), somewhere()
    here = one.take(latitude=repr(lat), longitude=repr(lng), location_name=f"Café {new_tag()}")
    settled(one)
    location = developer.subscribe("location", object_id=here["location"]["id"])
    circle = developer.subscribe("geography", lat=repr(lat), lng=repr(lng), radius="1000")
    far = developer.subscribe("geography", lat=repr(lat + 5500 * METRE), lng=repr(lng), radius="5000")
    there = take(one, location_id=here["location"]["id"])
    near = take(one, latitude=repr(lat + 990 * METRE), longitude=repr(lng))
    outside = take(one, latitude=repr(lat + 1010 * METRE), longitude=repr(lng))
    told(developer, far, near, outside)
    told(developer, circle, there, near)
    told(developer, location, there)
    assert {one["object_id"] for one in developer.told(circle)} == {circle["object_id"]}
    assert {one["object_id"] for one in developer.told(location)} == {here["location"]["id"]}


def test_what_is_told_is_listed_by_then(developer):
    one, name, (lat, lng) = Person(), new_tag(), somewhere()
    lists = {
        "user": (f"users/{one.id}/media/recent", {}),
        "tag": (f"tags/{name}/media/recent", {}),
        "geography": ("media/search", {"lat": lat, "lng": lng}),
    }
    found = []

    def look(updates: list[dict]) -> None:
        path, params = lists[updates[0]["object"]]
        found.append([media["id"] for media in one.get(path, **params)])

    developer.look = look
    developer.allowed_by(one)
    for object, params in (
        ("user", {}),
        ("tag", {"object_id": name}),
        ("geography", {"lat": repr(lat), "lng": repr(lng), "radius": "100"}),
    ):
        developer.subscribe(object, callback_url=developer.url(f"/{object}"), **params)
    media = take(one, caption=f"#{name}", latitude=repr(lat), longitude=repr(lng))
    eventually(lambda: len(developer.accepted) == 3, what="three callbacks are told")
    assert found == [[media]] * 3


def test_a_private_accounts_photos_are_for_no_public_subscription(developer):
    private, public, name, (lat, lng) = Person(), Person(), new_tag(), somewhere()
    private.post("accounts/edit", is_private="true")
    tag = developer.subscribe("tag", object_id=name)
    circle = developer.subscribe("geography", lat=repr(lat), lng=repr(lng), radius="100")
    where = {"latitude": repr(lat), "longitude": repr(lng)}
    take(private, caption=f"#{name}", **where)
    seen = take(public, caption=f"#{name}", **where)
    for subscription in (tag, circle):
        told(developer, subscription, seen)
        nothing_more(developer, subscription, seen)


def test_two_developers_are_told_each_with_its_own_signature(developer, another_developer):
    one, name = Person(), new_tag()
    subscribed = [(each, each.subscribe("tag", object_id=name)) for each in (developer, another_developer)]
    media = take(one, caption=f"#{name}")
    for each, subscription in subscribed:
        told(each, subscription, media)
    assert developer.secret != another_developer.secret


# When, and how often.


def test_a_callback_gets_one_request_at_a_time(developer):
    one = Person()
    developer.allowed_by(one)
    subscription = developer.subscribe("user")
    developer.open.clear()
    media = [one.publish()["id"] for _ in range(2)]
    eventually(lambda: Update.objects.filter(subscription_id=subscription["id"]).count() == 2, what="both are noted")
    eventually(lambda: developer.arrived, what="a request is there")
    assert len(developer.arrived) <= len(developer.accepted) + 1  # none is, unless all that took more than 4 s
    developer.open.set()
    told(developer, subscription, *media)


def test_what_comes_while_a_callback_is_busy_goes_in_one_request(developer):
    one = Person()
    developer.allowed_by(one)
    user, tag = developer.subscribe("user"), developer.subscribe("tag", object_id=new_tag())
    with held(developer):
        media = [take(one, caption=f"#{tag['object_id']}") for _ in range(3)]
    told(developer, user, *media)
    told(developer, tag, *media)
    assert [len(json.loads(body)) for body in developer.arrived] == [6]


def test_a_batch_is_bounded(developer, monkeypatch):
    one = Person()
    developer.allowed_by(one)
    subscription = developer.subscribe("user")
    with held(developer) as turn:
        media = [take(one) for _ in range(3)]
        monkeypatch.setattr(updates, "BATCH", 2)
        updates.deliver(**turn)
    told(developer, subscription, *media)
    assert [len(json.loads(body)) for body in developer.arrived] == [2, 1]


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_callback_that_fails_is_left_alone_and_told_later(developer, status):
    one = Person()
    developer.allowed_by(one)
    subscription = developer.subscribe("user")
    callback = Callback.objects.filter(url=developer.url())
    callback.update(failures=5)  # the next failure waits for 64 s
    developer.statuses = [status]
    media = [take(one)]
    eventually(lambda: callback.filter(failures=6).exists(), what="the sixth failure")
    assert callback.get().last_error == f"answered with status {status}"
    assert callback.get().failing_since is not None
    media.append(take(one))
    assert waiting(subscription) == 2
    assert len(developer.arrived) == 1
    job = OutboxJob.objects.filter(job="notifications.deliver", args__callback_id=callback.get().id)
    assert job.update(due_at=Now()) == 1
    told(developer, subscription, *media)
    assert len(developer.arrived) == 2
    eventually(lambda: not callback.get().is_busy, what="the turn has ended")
    assert (callback.get().failures, callback.get().failing_since, callback.get().last_error) == (0, None, "")


def test_a_callback_that_is_slow_rests_before_it_gets_more(developer, monkeypatch):
    one = Person()
    developer.allowed_by(one)
    subscription = developer.subscribe("user")
    monkeypatch.setattr(updates, "BATCH", 1)
    with held(developer) as turn:
        media = [take(one) for _ in range(2)]
        developer.open.clear()
        developer.look = lambda updates: threading.Timer(0.5, developer.open.set).start()
        updates.deliver(**turn)
    assert waiting(subscription) == 1
    (job,) = OutboxJob.objects.filter(args={"callback_id": turn["callback_id"], "turn": turn["turn"] + 1})
    assert (job.due_at - job.created_at).total_seconds() >= 5
    assert OutboxJob.objects.filter(id=job.id).update(due_at=Now()) == 1
    told(developer, subscription, *media)


def test_a_callback_that_was_away_is_told_all(developer):
    one = Person()
    developer.allowed_by(one)
    subscription = developer.subscribe("user")
    developer.stop()
    media = [take(one) for _ in range(3)]
    eventually(lambda: waiting(subscription) == 3, what="three updates wait")
    eventually(lambda: Callback.objects.get(url=developer.url()).failures, what="a failure is noted")
    developer.start()
    told(developer, subscription, *media)


def test_a_slow_callback_holds_up_no_other(developer, another_developer):
    one, name = Person(), new_tag()
    developer.subscribe("tag", object_id=name)
    quick = another_developer.subscribe("tag", object_id=name)
    developer.open.clear()
    media = [take(one, caption=f"#{name}") for _ in range(3)]
    told(another_developer, quick, *media)
    eventually(lambda: developer.arrived)  # the slow one was asked, and has not answered yet
    developer.open.set()


def test_what_waits_for_a_day_is_dropped(developer):
    one = Person()
    developer.allowed_by(one)
    subscription = developer.subscribe("user")
    callback = Callback.objects.get(url=developer.url())
    old = Now() - datetime.timedelta(days=1, minutes=1)
    Update.objects.create(callback=callback, subscription_id=subscription["id"], photo_id=1, owner_id=1, created_at=old)
    media = take(one)
    told(developer, subscription, media)
    assert not Update.objects.filter(subscription_id=subscription["id"], photo_id=1).exists()


def test_a_job_that_comes_twice_tells_once(developer):
    one, name, (lat, lng) = Person(), new_tag(), somewhere()
    developer.allowed_by(one)
    user, tag = developer.subscribe("user"), developer.subscribe("tag", object_id=name)
    circle = developer.subscribe("geography", lat=repr(lat), lng=repr(lng), radius="100")
    media = take(one, caption=f"#{name}", latitude=repr(lat), longitude=repr(lng))
    for subscription in (user, tag, circle):
        told(developer, subscription, media)
    updates.published(one.id, photo_id(media))
    updates.placed(one.id, photo_id(media))
    updates.tagged(one.id, photo_id(media), name)
    services.process(one.id, photo_id(media))
    tags.retag(one.id, photo_id(media))
    callback = Callback.objects.get(url=developer.url())
    updates.deliver(callback.id, callback.turn - 1)
    settled(one)
    for subscription in (user, tag, circle):
        nothing_more(developer, subscription, media)


def test_a_worker_that_is_killed_at_a_request_loses_nothing(developer):
    one = Person()
    developer.allowed_by(one)
    subscription = developer.subscribe("user")
    with held(developer):
        media = take(one)
        developer.open.clear()
    eventually(lambda: developer.arrived, what="the request is there")
    ctl("kill", "worker")  # before the request is accepted, after 4 s
    developer.open.set()
    callback = Callback.objects.get(url=developer.url())
    job = OutboxJob.objects.filter(job="notifications.deliver", args__callback_id=callback.id)
    assert job.update(due_at=Now(), held_until=Now()) == 1  # as soon as its lease has passed
    eventually(lambda: not waiting(subscription), 20, "nothing waits")
    assert developer.told_of(subscription) == [media, media]  # at least once


# What is not told any more.


def test_a_photo_that_was_deleted_meanwhile(developer):
    one = Person()
    developer.allowed_by(one)
    subscription = developer.subscribe("user")
    with held(developer):
        gone, kept = take(one), take(one)
        one.delete(f"media/{gone}")
        assert waiting(subscription) == 2
    told(developer, subscription, kept)
    nothing_more(developer, subscription, kept)


def test_an_account_that_became_private_meanwhile(developer):
    one, name = Person(), new_tag()
    developer.allowed_by(one)
    user, tag = developer.subscribe("user"), developer.subscribe("tag", object_id=name)
    with held(developer):
        media = take(one, caption=f"#{name}")
        assert waiting(tag) == 1
        one.post("accounts/edit", is_private="true")
    told(developer, user, media)
    nothing_more(developer, tag)


def test_a_revoked_token_ends_updates_at_once(developer):
    one, other = Person(), Person()
    tokens = {person: developer.allowed_by(person) for person in (one, other)}
    subscription = developer.subscribe("user")
    with held(developer):
        take(one)
        assert waiting(subscription) == 1
        form = {"client_id": developer.client.id, "client_secret": developer.secret, "token": tokens[one]}
        assert requests.post(f"{settings.SITE_URL}/oauth/revoke_token", data=form, timeout=20).status_code == 200
        take(one)
        assert waiting(subscription) == 1
        media = take(other)
    told(developer, subscription, media)
    nothing_more(developer, subscription, media)


def test_a_subscription_that_was_deleted(developer):
    one = Person()
    developer.allowed_by(one)
    subscription, other = developer.subscribe("user"), developer.subscribe("tag", object_id=new_tag())
    with held(developer):
        media = take(one, caption=f"#{other['object_id']}")
        assert waiting(subscription) == waiting(other) == 1
        developer.unsubscribe(id=subscription["id"])
    told(developer, other, media)
    assert developer.told_of(subscription) == []
    assert waiting(subscription) == 0


def test_a_client_that_was_deleted(developer, owner):
    one = Person()
    developer.allowed_by(one)
    subscription = developer.subscribe("user")
    with held(developer):
        take(one)
        assert waiting(subscription) == 1
        owner.submit(owner.open(f"{developer.client.path}delete/"), "Delete")
    take(one)
    assert not Callback.objects.filter(url=developer.url()).exists()
    assert developer.arrived == []


def test_a_rotated_secret_signs_from_then_on(developer, owner):
    one = Person()
    developer.allowed_by(one)
    subscription = developer.subscribe("user")
    with held(developer):
        media = take(one)
        page = owner.submit(owner.open(f"{developer.client.path}secret/"), "Make a new secret")
        developer.secret = shown(page, "client_secret")
    told(developer, subscription, media)


def test_each_request_is_checked_like_the_first(developer, monkeypatch):
    one = Person()
    developer.allowed_by(one)
    subscription = developer.subscribe("user")
    with held(developer) as turn:
        take(one)
        assert waiting(subscription) == 1
        monkeypatch.setattr(settings, "CALLBACK_NETWORKS", [])  # its name now leads to another address, say
        updates.deliver(**turn)
    callback = Callback.objects.get(url=developer.url())
    assert (callback.failures, callback.last_error) == (1, "is at an address that is not public")
    assert developer.arrived == []
