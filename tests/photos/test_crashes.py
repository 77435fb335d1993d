"""A crash between any two steps: the outbox brings the job again, and it finishes the rest, once in effect."""

import pytest
from botocore.exceptions import EndpointConnectionError
from django.conf import settings

from photos import services, storage
from photos.models import Status
from photos.visible import seen
from shardmap import photo_map
from tests.photos.seen import exists, pixels, row_of
from tests.support import jobs_of, photo_id
from workers.registry import all_jobs
from workers.worker import JobTimeout

STEPS_OF_PROCESS = ["read_upload", "put_renditions", "_leave_processing", "delete_upload", "forget_surely"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS_OF_PROCESS)
def test_a_crash_at_any_step_of_processing_is_made_good_by_the_next_try(person, monkeypatch, no_workers, step, when):
    """A crash is an exception that nothing catches, before or after the step; then the job comes again."""
    one = person()
    media = one.publish()
    upload_id = row_of(media).upload_id
    place = next(place for place in (storage, services, services.cache) if hasattr(place, step))
    original = getattr(place, step)

    def crash(*args, **kwargs):
        if when == "after":
            original(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(place, step, crash)
    with pytest.raises(KeyboardInterrupt):
        services.process(one.id, photo_id(media["id"]))
    monkeypatch.setattr(place, step, original)
    services.process(one.id, photo_id(media["id"]))

    assert row_of(media).status == Status.READY
    assert one.counts()["media"] == 1
    assert [row.job for row in jobs_of(one.id)].count("feeds.fan_out") == 1
    assert not exists(settings.S3_UPLOADS_BUCKET, f"{one.id}/{upload_id}")
    assert pixels(one.get(f"media/{media['id']}")["images"]["thumbnail"]["url"]).size == (150, 150)


@pytest.mark.parametrize("name", ["feeds.said", "notifications.published"])
def test_who_is_told_of_a_photo_sees_it_also_after_a_crash_before_the_cache_knows(
    person, monkeypatch, no_workers, name
):
    one, fan = person(), person()
    media = one.publish(caption=f"for @{fan.username}")
    assert one.get(f"media/{media['id']}")["status"] == "processing"  # which is cached now

    def crash(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(services.cache, "forget_surely", crash)
        with pytest.raises(KeyboardInterrupt):
            services.process(one.id, photo_id(media["id"]))
    (args,) = [row.args for row in jobs_of(one.id) if row.job == name]
    assert seen(fan.id, [(photo_id(media["id"]), one.id)]) == []
    all_jobs()[name](**args)
    assert len(seen(fan.id, [(photo_id(media["id"]), one.id)])) == 1


def test_a_photo_that_was_deleted_while_it_was_processed_leaves_nothing(person, monkeypatch, no_workers):
    one = person()
    media = one.publish()
    upload_id, put = row_of(media).upload_id, storage.put_renditions

    def deleted_meanwhile(*args):
        services.delete(one.id, photo_id(media["id"]))
        services.bury(one.id, photo_id(media["id"]), upload_id)
        put(*args)

    monkeypatch.setattr(storage, "put_renditions", deleted_meanwhile)
    services.process(one.id, photo_id(media["id"]))
    assert row_of(media).status == Status.DELETED
    assert not exists(settings.S3_PHOTOS_BUCKET, upload_id)
    assert one.counts()["media"] == 0


@pytest.mark.parametrize("error", [MemoryError, JobTimeout, SystemExit])
def test_a_picture_that_takes_its_workers_down_is_rejected_in_the_end(person, monkeypatch, no_workers, error):
    one = person()
    media = one.publish()

    def explode(original):
        raise error

    monkeypatch.setattr(services, "render", explode)
    for _ in range(services.MAX_DECODES):
        with pytest.raises(error):
            services.process(one.id, photo_id(media["id"]))
    services.process(one.id, photo_id(media["id"]))
    rejected = one.get(f"media/{media['id']}")
    assert rejected["status"] == "rejected"
    assert "decoded" in rejected["message"]
    assert not exists(settings.S3_UPLOADS_BUCKET, f"{one.id}/{row_of(media).upload_id}")


def test_an_outage_of_s3_does_not_count_against_the_picture(person, monkeypatch, no_workers):
    one = person()
    media = one.publish()

    def away(*args):
        raise EndpointConnectionError(endpoint_url="s3")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "put_renditions", away)
        for _ in range(services.MAX_DECODES + 1):
            with pytest.raises(EndpointConnectionError):
                services.process(one.id, photo_id(media["id"]))
    services.process(one.id, photo_id(media["id"]))
    assert one.get(f"media/{media['id']}")["status"] == "ready"


def test_an_upload_that_vanished_is_rejected(person, no_workers):
    one = person()
    media = one.publish()
    storage.delete_upload(one.id, row_of(media).upload_id)
    services.process(one.id, photo_id(media["id"]))
    assert "no longer there" in one.get(f"media/{media['id']}")["message"]


@pytest.mark.parametrize("step", ["delete_upload", "delete_renditions", "forget", "forget_surely"])
def test_a_crash_at_any_step_of_burying_is_made_good_by_the_next_try(person, monkeypatch, no_workers, step):
    one = person()
    media = one.publish()
    row = row_of(media)
    services.process(one.id, row.id)
    one.delete(f"media/{media['id']}")
    place = next(place for place in (storage, services.photo_map, services.cache) if hasattr(place, step))

    def crash(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(place, step, crash)
        with pytest.raises(KeyboardInterrupt):
            services.bury(one.id, row.id, row.upload_id)
    services.bury(one.id, row.id, row.upload_id)
    assert not exists(settings.S3_PHOTOS_BUCKET, row.upload_id)
    assert photo_map.owner_of(row.id) is None
    assert one.counts()["media"] == 0
