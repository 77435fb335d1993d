"""The job that makes an avatar: in any order, twice, after a crash, and when something else is wanted by then."""

import pytest
from botocore.exceptions import EndpointConnectionError
from django.conf import settings

from accounts.models import User
from photos import avatars, services, storage
from photos.models import Avatar
from tests.photos.seen import exists, row_of
from tests.photos.test_avatars import change, color_at, is_default, refused
from tests.support import PASSWORD, Person, jobs_of, jpeg
from workers.worker import JobTimeout


def job_of(one: Person) -> dict:
    """The arguments of the job that waits to make somebody's avatar."""
    (args,) = [row.args for row in jobs_of(one.id) if row.job == "photos.make_avatar"]
    return args


def test_the_upload_of_a_photo_stays_the_photos(person, no_workers):
    one = person()
    upload_id = one.upload(jpeg())
    media = one.post("media", upload_id=upload_id)
    assert "published" in refused(one.post, "accounts/avatar", upload_id=upload_id)["error_message"]
    services.process(one.id, row_of(media).id)
    assert one.get(f"media/{media['id']}")["status"] == "ready"


@pytest.mark.parametrize("first", ["photo", "avatar"])
def test_a_photo_and_an_avatar_of_one_upload_do_not_lose_it_to_each_other(person, no_workers, first):
    one = person()
    upload_id = one.upload(jpeg("green"))
    one.post("accounts/avatar", upload_id=upload_id)
    media = one.post("media", upload_id=upload_id)
    jobs = {"photo": lambda: services.process(one.id, row_of(media).id), "avatar": lambda: avatars.make(**job_of(one))}
    jobs.pop(first)()
    assert exists(settings.S3_UPLOADS_BUCKET, f"{one.id}/{upload_id}")
    jobs.popitem()[1]()
    assert one.get(f"media/{media['id']}")["status"] == "ready"
    assert color_at(one.get("users/self")["profile_picture"]) == "green"
    assert not exists(settings.S3_UPLOADS_BUCKET, f"{one.id}/{upload_id}")


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, 0), (1, 0, 1)])
def test_the_last_change_wins_whatever_the_order_of_jobs(person, no_workers, order):
    one, jobs = person(), []
    for color in ("red", "blue"):
        change(one, jpeg(color))
        jobs.append(next(row.args for row in jobs_of(one.id) if row.args not in jobs and "upload_id" in row.args))
    for number in order:
        avatars.make(**jobs[number])
    assert color_at(one.get("users/self")["profile_picture"]) == "blue"
    assert not exists(settings.S3_PHOTOS_BUCKET, jobs[0]["picture"])
    for job in jobs:
        assert not exists(settings.S3_UPLOADS_BUCKET, f"{one.id}/{job['upload_id']}")


def test_removing_wins_over_what_is_being_made(person, no_workers):
    one = person()
    change(one, jpeg("red"))
    job = job_of(one)
    one.delete("accounts/avatar")
    avatars.make(**job)
    assert is_default(one)
    assert not exists(settings.S3_PHOTOS_BUCKET, job["picture"])
    assert not exists(settings.S3_UPLOADS_BUCKET, f"{one.id}/{job['upload_id']}")


STEPS = ["read_upload", "put_picture", "_show", "delete_upload", "forget_surely"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_any_step_is_made_good_by_the_next_try(person, monkeypatch, no_workers, step, when):
    one = person()
    change(one, jpeg("red"))
    job = job_of(one)
    place = next(place for place in (storage, avatars, avatars.cache) if hasattr(place, step))
    original = getattr(place, step)

    def crash(*args, **kwargs):
        if when == "after":
            original(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(place, step, crash)
        with pytest.raises(KeyboardInterrupt):
            avatars.make(**job)
    avatars.make(**job)
    assert one.get("accounts/avatar")["status"] == "ready"
    assert color_at(one.get("users/self")["profile_picture"]) == "red"
    assert not exists(settings.S3_UPLOADS_BUCKET, f"{one.id}/{job['upload_id']}")


@pytest.mark.parametrize("error", [MemoryError, JobTimeout, SystemExit])
def test_a_picture_that_takes_its_workers_down_is_rejected_in_the_end(person, monkeypatch, no_workers, error):
    one = person()
    change(one, jpeg("red"))
    job = job_of(one)

    def explode(original):
        raise error

    monkeypatch.setattr(services, "render", explode)
    for _ in range(services.MAX_DECODES):
        with pytest.raises(error):
            avatars.make(**job)
    avatars.make(**job)
    state = one.get("accounts/avatar")
    assert state["status"] == "rejected"
    assert "decoded" in state["message"]
    assert not exists(settings.S3_UPLOADS_BUCKET, f"{one.id}/{job['upload_id']}")


def test_an_outage_of_s3_does_not_count_against_the_picture(person, monkeypatch, no_workers):
    one = person()
    change(one, jpeg("red"))
    job = job_of(one)

    def away(*args):
        raise EndpointConnectionError(endpoint_url="s3")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "put_picture", away)
        for _ in range(services.MAX_DECODES + 1):
            with pytest.raises(EndpointConnectionError):
                avatars.make(**job)
    avatars.make(**job)
    assert color_at(one.get("users/self")["profile_picture"]) == "red"


def test_an_avatar_that_is_made_after_its_account_was_deleted_is_not_kept(person, no_workers):
    one = person()
    change(one, jpeg("red"))
    job = job_of(one)
    one.call("DELETE", "accounts", form={"password": PASSWORD})
    avatars.make(**job)
    assert User.objects.get(id=one.id).profile_picture == ""
    assert not exists(settings.S3_PHOTOS_BUCKET, job["picture"])
    assert not Avatar.objects.filter(user_id=one.id).exists()


def test_a_change_of_mind_while_the_picture_is_being_made(person, monkeypatch, no_workers):
    one = person()
    change(one, jpeg("red"))
    first, put = job_of(one), storage.put_picture

    def meanwhile(*args):
        change(one, jpeg("blue"))
        put(*args)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "put_picture", meanwhile)
        avatars.make(**first)
    assert is_default(one)
    assert not exists(settings.S3_PHOTOS_BUCKET, first["picture"])
    (second,) = [row.args for row in jobs_of(one.id) if row.job == "photos.make_avatar" and row.args != first]
    avatars.make(**second)
    assert color_at(one.get("users/self")["profile_picture"]) == "blue"
