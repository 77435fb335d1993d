"""A crash between any two steps: the outbox brings the job again, and it finishes the rest, once in effect."""

import pytest
from django.conf import settings

from photos import services, storage
from photos.models import Status
from tests.photos.seen import exists, pixels, row_of
from tests.support import jobs_of, photo_id

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
        services.process(one.id, photo_id(media["id"]), upload_id)
    monkeypatch.setattr(place, step, original)
    services.process(one.id, photo_id(media["id"]), upload_id)

    assert row_of(media).status == Status.READY
    assert one.counts()["media"] == 1
    assert [row.job for row in jobs_of(one.id)].count("feeds.fan_out") == 1
    assert not exists(settings.S3_UPLOADS_BUCKET, f"{one.id}/{upload_id}")
    assert pixels(one.get(f"media/{media['id']}")["images"]["thumbnail"]["url"]).size == (150, 150)


def test_a_photo_that_was_deleted_while_it_was_processed_leaves_nothing(person, monkeypatch, no_workers):
    one = person()
    media = one.publish()
    upload_id, put = row_of(media).upload_id, storage.put_renditions

    def deleted_meanwhile(*args):
        services.delete(one.id, photo_id(media["id"]))
        services.bury(one.id, photo_id(media["id"]))
        put(*args)

    monkeypatch.setattr(storage, "put_renditions", deleted_meanwhile)
    services.process(one.id, photo_id(media["id"]), upload_id)
    assert row_of(media) is None
    assert not exists(settings.S3_PHOTOS_BUCKET, upload_id)
    assert one.counts()["media"] == 0
