"""From what somebody does in the API to what APNs is asked to tell whose phones."""

import json
import secrets

import pytest
from django.db.models.functions import Now

from accounts.models import User
from notifications import tell
from notifications.models import Device
from photos import likes
from tests.notifications.test_pyapns import kill_service
from tests.support import Person, apns_requests, ctl, eventually, jobs_of, new_username, photo_id, settled
from workers.models import OutboxJob


def phone(one: Person, beginning: str = "", environment: str = "production") -> str:
    """Registers a phone; returns its token, whose beginning tells the double how to answer."""
    token = beginning + secrets.token_hex(32)[len(beginning) :]
    one.post("push/devices", token=token, environment=environment)
    return token


def got(token: str) -> list[dict]:
    """The payloads that were delivered to a phone."""
    return [json.loads(request["payload"]) for request in apns_requests(token) if request["status"] == 200]


def delivered(token: str) -> set[str]:
    """The IDs of the notifications that a phone has got."""
    return {request["id"] for request in apns_requests(token) if request["status"] == 200}


def like(one: Person, media: dict) -> None:
    one.post(f"media/{media['id']}/likes")


@pytest.fixture
def two(person):
    return person(), person()


def test_a_like_reaches_all_phones_of_the_owner(two):
    one, fan = two
    media, phones = one.take(), [phone(one), phone(one, environment="sandbox")]
    like(fan, media)
    settled(one, fan)
    for token in phones:
        (payload,) = got(token)
        assert payload["aps"]["alert"]["body"] == f"{fan.username} liked your photo."
        assert payload["link"] == f"instagram://media?id={media['id']}"
    first, second = (apns_requests(token)[0] for token in phones)
    assert first["collapse_id"] == second["collapse_id"] == f"like:{photo_id(media['id'])}"
    assert first["id"] != second["id"]


def test_each_kind_reaches_whom_it_concerns(person):
    one, fan = person(), person()
    token, fans_token = phone(one), phone(fan)
    fan.follow(one)
    settled(one, fan)
    media = one.take()
    settled(one, fan)
    fan.post(f"media/{media['id']}/comments", text="lovely")
    settled(one, fan)
    one.post(f"media/{media['id']}/comments", text=f"thanks, @{fan.username}")
    settled(one, fan)
    one.post("accounts/edit", is_private="true")
    fan.unfollow(one)
    settled(one, fan)
    fan.follow(one)
    settled(one, fan)
    one.post(f"users/{fan.id}/relationship", action="approve")
    settled(one, fan)
    assert [payload["aps"]["alert"]["body"] for payload in got(token)] == [
        f"{fan.username} started following you.",
        f"{fan.username} commented: lovely",
        f"{fan.username} has asked to follow you.",
    ]
    assert [payload["aps"]["alert"]["body"] for payload in got(fans_token)] == [
        f"{one.username} has posted a first photo.",
        f"{one.username} mentioned you: thanks, @{fan.username}",
        f"{one.username} has accepted your request to follow.",
    ]


def test_a_hundred_likes_are_five_pushes(person):
    one = person()
    media, token = one.take(), phone(one)
    names = [new_username() for _ in range(100)]
    users = User.objects.bulk_create(User(username=name, email=name, full_name="") for name in names)
    for user in users:
        likes.like(user.id, photo_id(media["id"]), one.id)
    settled(one)
    bodies = [payload["aps"]["alert"]["body"] for payload in got(token)]
    assert len(bodies) == 5
    assert [body for body in bodies if body.endswith(" and 99 others liked your photo.")]


def test_a_dead_phone_is_forgotten_after_one_push(two):
    one, fan = two
    dead, alive = phone(one, "dead0410"), phone(one)
    media, other = one.take(), one.take()
    like(fan, media)
    settled(one, fan)
    assert [device["token"] for device in one.get("push/devices")] == [alive]
    like(fan, other)
    settled(one, fan)
    assert (len(apns_requests(dead)), len(apns_requests(alive))) == (1, 2)


def test_a_phone_that_cannot_be_told_now_does_not_make_the_others_ring_again(two):
    one, fan = two
    failing, dead, fine = phone(one, "dead0500"), phone(one, "dead0410"), phone(one)
    like(fan, one.take())
    eventually(lambda: any(row.job == "notifications.send_again" and row.attempts > 1 for row in jobs_of(one.id)), 30)
    assert [device["token"] for device in one.get("push/devices")] == [fine, failing]
    assert len({request["id"] for request in apns_requests(failing)}) == 1
    one.delete(f"push/devices?token={failing}")
    OutboxJob.objects.filter(job="notifications.send_again").update(due_at=Now(), held_until=Now())
    settled(one, fan)
    assert (len(apns_requests(dead)), len(apns_requests(fine))) == (1, 1)


def test_a_job_that_runs_again_sends_the_same_notifications(two):
    one, fan = two
    media, token = one.take(), phone(one)
    like(fan, media)
    settled(one, fan)
    (activity,) = one.get("users/self/activity")
    tell.tell(one.id, int(activity["id"]))
    first, again = apns_requests(token)
    assert first["id"] == again["id"]


def test_a_phone_is_told_of_nothing_once_somebody_else_has_it(two):
    one, fan = two
    media, token = one.take(), phone(one)
    fan.post("push/devices", token=token, environment="production")
    like(fan, media)
    settled(one, fan)
    assert got(token) == []
    assert Device.objects.get(token=token).user_id == fan.id


def test_while_the_service_is_away_pushes_wait(two, stopped):
    one, fan = two
    media, token = one.take(), phone(one)
    settled(one, fan)
    stopped("pyapns")
    like(fan, media)
    waiting = eventually(lambda: [row for row in jobs_of(one.id) if row.job == "notifications.tell" and row.attempts])
    assert len(waiting) == 1
    ctl("start", "pyapns")
    settled(one, fan)
    assert len(got(token)) == 1


def test_what_is_on_its_way_when_the_service_is_killed_arrives(person):
    one = person()
    photos = [photo_id(one.publish()["id"]) for _ in range(8)]
    token = phone(one, "dead0050")  # half of the tries fail, so that each push takes a while
    settled(one)
    names = [new_username() for _ in range(24)]
    users = User.objects.bulk_create(User(username=name, email=name, full_name="") for name in names)
    for number, user in enumerate(users):
        likes.like(user.id, photos[number % 8], one.id)
    eventually(lambda: delivered(token), what="the first has arrived")
    kill_service()
    assert len(delivered(token)) < len(users)
    eventually(lambda: [row for row in jobs_of(one.id) if "Unavailable" in row.last_error], what="some were cut off")
    # A push fails for good, until its job comes again, when five tries have failed; and the pauses of jobs double.
    eventually(lambda: not jobs_of(one.id), 60, "all are pushed")
    assert len(delivered(token)) == len(users)
