import io
import threading

import pytest
import requests
from django.conf import settings
from PIL import Image

from photos import storage
from photos.models import Photo
from shardmap import photo_map
from shardmap.shards import on_shard
from tests.photos.seen import exists, pixels, row_of
from tests.support import Refused, eventually, jpeg, photo_id, picture, settled

GPS, ORIENTATION = 34853, 274


def refused(call, *args, **kwargs) -> dict:
    with pytest.raises(Refused) as error:
        call(*args, **kwargs)
    return error.value.meta


def left_processing(one, media: dict) -> dict | None:
    media = one.get(f"media/{media['id']}")
    return media if media["status"] != "processing" else None


def test_a_published_photo_has_everything_a_client_needs(person):
    one = person()
    media = one.take(caption="Sunset at #Ørsta 🌅 #sun #SUN a#b", filter="Hefe", latitude=62.2, longitude=6.13)
    assert media["id"].endswith(f"_{one.id}")
    assert media["type"] == "image"
    assert media["user"]["username"] == one.username
    assert media["caption"]["text"] == "Sunset at #Ørsta 🌅 #sun #SUN a#b"
    assert media["filter"] == "Hefe"
    assert media["location"] == {"latitude": 62.2, "longitude": 6.13}
    assert media["created_time"].isdigit()
    assert media["tags"] == ["ørsta", "sun"]
    assert (media["likes"]["count"], media["comments"]["count"]) == (0, 0)
    for name, size in (("thumbnail", 150), ("low_resolution", 306), ("standard_resolution", 612)):
        image = media["images"][name]
        assert (image["width"], image["height"]) == (size, size)
        assert pixels(image["url"]).size == (size, size)
    assert one.counts()["media"] == 1


def test_a_photo_is_shown_upright_and_without_its_place(person):
    landscape = Image.new("RGB", (900, 600), "blue")
    landscape.paste("red", (0, 0, 450, 600))  # left half; turned by the tag, it is the upper half
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[GPS] = {1: "N", 2: (62.0, 12.0, 0.0), 3: "E", 4: (6.0, 8.0, 0.0)}
    out = io.BytesIO()
    landscape.save(out, "JPEG", exif=exif, quality=95)
    assert b"Exif" in out.getvalue()

    media = person().take(out.getvalue())
    for image in media["images"].values():
        shown = pixels(image["url"])
        assert not shown.getexif()
        size = shown.size[0]
        red, blue = shown.getpixel((size // 2, size // 8)), shown.getpixel((size // 2, size - size // 8))
        assert red[0] > 200 > 60 > red[2]
        assert blue[2] > 200 > 60 > blue[0]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_other_formats_are_taken(person, kind):
    assert person().take(picture(kind))["status"] == "ready"


def test_heic_is_taken(person):
    from pillow_heif import from_pillow

    out = io.BytesIO()
    from_pillow(Image.new("RGB", (640, 480), "orange")).save(out)
    one = person()
    media = one.post("media", upload_id=one.upload(out.getvalue(), "image/heic"))
    assert eventually(lambda: one.ready(media["id"]))["images"]


def test_while_it_is_processed_a_photo_is_its_owners_alone(person, stopped):
    stopped("worker")
    one, other = person(), person()
    media = one.publish()
    assert media["status"] == "processing"
    assert one.get(f"media/{media['id']}")["images"] == {}
    assert refused(other.get, f"media/{media['id']}")["error_type"] == "APINotFoundError"
    assert one.get(f"users/{one.id}/media/recent") == []
    assert one.counts()["media"] == 0


def test_the_id_works_with_and_without_its_owner(person):
    one = person()
    media = one.take()
    bare = str(photo_id(media["id"]))
    assert one.get(f"media/{bare}")["id"] == media["id"]
    assert refused(one.get, f"media/{bare}_{one.id + settings.LOGICAL_SHARDS}")["error_type"] == "APINotFoundError"
    assert refused(one.get, f"media/{bare}_{one.id + 1}")["error_type"] == "APINotFoundError"


@pytest.mark.parametrize("media_id", ["1", "1_1", "9223372036854775807", "9223372036854775807_3"])
def test_media_that_does_not_exist(person, media_id):
    assert refused(person().get, f"media/{media_id}")["error_type"] == "APINotFoundError"


@pytest.mark.parametrize("media_id", ["abc", "1_", "_1", "1_2_3", "-1", "9223372036854775808", "1 2", "\u0967"])
def test_media_ids_that_are_none(person, media_id):
    assert refused(person().get, f"media/{media_id}")["error_type"] == "APIInvalidParametersError"


# What is refused, and how.


def test_an_upload_that_never_happened(person):
    meta = refused(person().post, "media", upload_id="0" * 32)
    assert meta["error_type"] == "APIInvalidParametersError"
    assert "upload_id" in meta["error_message"]


@pytest.mark.parametrize("upload_id", ["", "../1/abc", "x" * 32, "A" * 32, "0" * 33])
def test_an_upload_id_that_is_none(person, upload_id):
    meta = refused(person().post, "media", upload_id=upload_id)
    assert meta["error_type"] == "APIInvalidParametersError"
    assert "upload_id" in meta["error_message"]


def test_the_upload_of_another_user(person):
    one, thief = person(), person()
    upload_id = one.upload(jpeg())
    assert refused(thief.post, "media", upload_id=upload_id)["error_type"] == "APIInvalidParametersError"
    assert one.post("media", upload_id=upload_id)["status"] in ("processing", "ready")


def bomb() -> bytes:
    """A PNG of a few kilobytes that says it is 50,000 by 50,000."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 6251 * 1000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "upload",
    [
        b"not a picture at all",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='700' height='700'/>",
        b"GIF89a" + bytes(100),
        b"\xff\xd8\xff\xe0" + bytes(100),
        jpeg(size=(900, 900), quality=95)[:3000],
        picture("PNG", size=(900, 900))[:-300],
        bomb(),
    ],
    ids=["text", "svg", "gif", "jpeg header", "truncated jpeg", "truncated png", "bomb"],
)
def test_what_is_not_a_picture_is_rejected_and_gone(person, upload):
    one, follower = person(), person()
    follower.follow(one)
    media = one.publish(upload)
    rejected = eventually(lambda: left_processing(one, media))
    assert rejected["status"] == "rejected"
    assert rejected["message"]
    assert rejected["images"] == {}
    settled(one, follower)
    upload_id = row_of(media).upload_id
    assert not exists(settings.S3_UPLOADS_BUCKET, f"{one.id}/{upload_id}")
    assert not exists(settings.S3_PHOTOS_BUCKET, upload_id)
    assert refused(follower.get, f"media/{media['id']}")["error_type"] == "APINotFoundError"
    assert follower.feed() == one.feed() == []
    assert one.get("users/self/media/recent") == []
    assert one.counts()["media"] == 0


def test_s3_refuses_more_than_20_megabytes(person):
    form = person().post("media/uploads")
    response = requests.post(form["url"], data=form["fields"], files={"file": bytes(20 * 1024 * 1024 + 1)}, timeout=20)
    assert response.status_code == 400
    assert "EntityTooLarge" in response.text


def test_what_got_into_s3_larger_than_allowed_is_refused_at_publish(person):
    one, upload_id = person(), "f" * 32
    storage._s3().put_object(
        Bucket=settings.S3_UPLOADS_BUCKET, Key=f"{one.id}/{upload_id}", Body=bytes(20 * 1024 * 1024 + 1)
    )
    assert "bytes" in refused(one.post, "media", upload_id=upload_id)["error_message"]
    storage.delete_upload(one.id, upload_id)


@pytest.mark.parametrize("change", [{"key": "1/other"}, {"Content-Type": "text/html"}, {"policy": "e30="}])
def test_s3_refuses_a_form_that_was_changed(person, change):
    form = person().post("media/uploads")
    response = requests.post(form["url"], data=form["fields"] | change, files={"file": jpeg()}, timeout=20)
    assert response.status_code == 403


def test_an_upload_form_says_when_it_expires_and_only_takes_pictures(person):
    one = person()
    assert int(one.post("media/uploads")["expires_at"]) > 0
    meta = refused(one.post, "media/uploads", content_type="text/html")
    assert "content_type" in meta["error_message"]


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"caption": "x" * 2201}, "caption"),
        ({"caption": "a\0b"}, "caption"),
        ({"latitude": "91", "longitude": "0"}, "latitude"),
        ({"latitude": "nan", "longitude": "0"}, "latitude"),
        ({"latitude": "1", "longitude": "east"}, "longitude"),
        ({"latitude": "1"}, "latitude"),
        ({"filter": "x" * 31}, "filter"),
    ],
)
def test_bad_parameters_are_named_and_nothing_is_published(person, params, named):
    one = person()
    upload_id = one.upload(jpeg())
    meta = refused(one.post, "media", upload_id=upload_id, **params)
    assert meta["error_type"] == "APIInvalidParametersError"
    assert named in meta["error_message"]
    with on_shard(one.id):
        assert not Photo.objects.filter(owner_id=one.id).exists()


# Once and only once.


def test_publishing_an_upload_twice_gives_the_same_photo(person):
    one = person()
    upload_id = one.upload(jpeg())
    first = one.post("media", upload_id=upload_id, caption="first")
    second = one.post("media", upload_id=upload_id, caption="second")
    eventually(lambda: one.ready(first["id"]))
    settled(one)
    third = one.post("media", upload_id=upload_id)  # the upload itself is gone by now
    assert first["id"] == second["id"] == third["id"]
    assert third["caption"]["text"] == "first"
    assert one.counts()["media"] == 1


def test_publishing_an_upload_at_the_same_instant_gives_one_photo(person):
    one = person()
    upload_id = one.upload(jpeg())
    start, answers = threading.Barrier(8), []

    def publish() -> None:
        start.wait(10)
        answers.append(one.post("media", upload_id=upload_id)["id"])

    threads = [threading.Thread(target=publish) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert len(set(answers)) == 1
    settled(one)
    assert len(one.get("users/self/media/recent")) == one.counts()["media"] == 1


# A user's photos, and deleting.


def test_recent_photos_come_in_pages_that_neither_repeat_nor_skip(person):
    one = person()
    taken = [one.publish()["id"] for _ in range(5)]
    settled(one)
    response = one.call("GET", "users/self/media/recent", params={"count": 2}).json()
    seen = [media["id"] for media in response["data"]]
    one.take()  # does not disturb those who page
    while response["pagination"]:
        response = requests.get(
            response["pagination"]["next_url"], headers={"Authorization": f"Bearer {one.token}"}, timeout=10
        ).json()
        seen += [media["id"] for media in response["data"]]
    assert seen == taken[::-1]
    newer = one.get("users/self/media/recent", min_id=taken[2])
    assert [media["id"] for media in newer][1:] == [taken[4], taken[3]]


def test_recent_photos_of_a_time(person):
    one = person()
    media = one.take()
    created = int(media["created_time"])

    def found(**times) -> bool:
        return [shown["id"] for shown in one.get("users/self/media/recent", **times)] == [media["id"]]

    assert found(min_timestamp=created, max_timestamp=created)
    assert not found(min_timestamp=created + 1)
    assert not found(max_timestamp=created - 1)


@pytest.mark.parametrize("count", ["0", "101", "-1", "many"])
def test_a_bad_count_is_named(person, count):
    assert "count" in refused(person().get, "users/self/media/recent", count=count)["error_message"]


def test_a_deleted_photo_is_gone_everywhere(person):
    one, other = person(), person()
    media, kept = one.take(caption="private"), one.take()
    upload_id = row_of(media).upload_id
    one.delete(f"media/{media['id']}")
    for viewer in (one, other):
        assert refused(viewer.get, f"media/{media['id']}")["error_type"] == "APINotFoundError"
    assert one.counts()["media"] == 1
    settled(one)
    assert row_of(media).caption == ""
    assert photo_map.owner_of(photo_id(media["id"])) is None
    assert not exists(settings.S3_PHOTOS_BUCKET, upload_id)
    assert [left["id"] for left in one.get("users/self/media/recent")] == [kept["id"]]
    assert refused(one.delete, f"media/{media['id']}")["error_type"] == "APINotFoundError"


def test_the_form_of_a_deleted_photo_cannot_be_used_again(person):
    """Its renditions' names are in caches, with the deleted pixels."""
    one = person()
    form = one.post("media/uploads")
    media = None
    for answer in (200, 400):
        requests.post(form["url"], data=form["fields"], files={"file": jpeg()}, timeout=10)
        response = one.call("POST", "media", form={"upload_id": form["upload_id"]})
        assert response.status_code == answer
        if answer == 200:
            media = response.json()["data"]
            eventually(lambda media=media: one.ready(media["id"]))
            one.delete(f"media/{media['id']}")
            settled(one)
    assert "deleted" in response.json()["meta"]["error_message"]
    storage.delete_upload(one.id, form["upload_id"])


def test_only_its_owner_deletes_a_photo(person):
    one, other = person(), person()
    media = one.take()
    assert refused(other.delete, f"media/{media['id']}")["error_type"] == "APINotAllowedError"
    assert one.get(f"media/{media['id']}")["status"] == "ready"


def test_a_photo_that_is_deleted_twice_at_once_counts_once(person):
    one = person()
    media = one.take()
    threads = [threading.Thread(target=lambda: one.call("DELETE", f"media/{media['id']}")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    settled(one)
    assert one.counts()["media"] == 0
