"""From an upload to the picture beside a user's name."""

import io
import threading

import pytest
import requests
from django.conf import settings
from PIL import Image

from photos.models import Avatar
from tests.photos.seen import exists, pixels
from tests.support import PASSWORD, Person, Refused, eventually, jpeg, picture, settled

COLORS = {"red": (254, 0, 0), "blue": (0, 0, 254), "green": (0, 128, 1)}
GPS = 34853


def refused(call, *args, **kwargs) -> dict:
    with pytest.raises(Refused) as error:
        call(*args, **kwargs)
    return error.value.meta


def change(one: Person, photo: bytes) -> dict:
    """Asks for an avatar; it is still being made."""
    return one.post("accounts/avatar", upload_id=one.upload(photo))


def changed(one: Person, photo: bytes) -> str:
    """Changes the avatar; its URL."""
    change(one, photo)
    state = eventually(lambda: state if (state := one.get("accounts/avatar"))["status"] != "processing" else None)
    assert state["status"] == "ready", state["message"]
    settled(one)
    return one.get("users/self")["profile_picture"]


def color_at(url: str) -> str:
    """The colour of a square of 150 pixels."""
    shown = pixels(url)
    assert (shown.size, shown.format) == ((150, 150), "JPEG")
    return min(COLORS, key=lambda name: sum(abs(a - b) for a, b in zip(shown.getpixel((75, 75)), COLORS[name])))  # noqa: B905


def key_of(url: str) -> str:
    return url.removeprefix(f"{settings.CDN_URL}/")


def is_stored(url: str) -> bool:
    return exists(settings.S3_PHOTOS_BUCKET, key_of(url))


def is_default(one: Person) -> bool:
    return one.get("users/self")["profile_picture"] == f"{settings.CDN_URL}/anonymous.jpg"


def test_an_avatar_is_seen_by_all_wherever_its_owner_is(person):
    one, other = person(), person()
    media = one.take()
    upload_id = one.upload(jpeg("red"))
    state = one.post("accounts/avatar", upload_id=upload_id)
    assert state["status"] in ("processing", "ready")
    assert state["user"]["username"] == one.username
    eventually(lambda: one.get("accounts/avatar")["status"] == "ready")
    settled(one)
    url = one.get("accounts/avatar")["user"]["profile_picture"]
    assert color_at(url) == "red"
    assert other.get(f"users/{one.id}")["profile_picture"] == url
    assert other.get(f"media/{media['id']}")["user"]["profile_picture"] == url
    assert upload_id not in url
    assert not exists(settings.S3_UPLOADS_BUCKET, f"{one.id}/{upload_id}")


def test_an_avatar_says_nothing_of_where_it_was_taken(person):
    exif = Image.Exif()
    exif[GPS] = {1: "N", 2: (62.0, 12.0, 0.0), 3: "E", 4: (6.0, 8.0, 0.0)}
    out = io.BytesIO()
    Image.new("RGB", (900, 600), "blue").save(out, "JPEG", exif=exif)
    assert not pixels(changed(person(), out.getvalue())).getexif()


def test_another_avatar_replaces_the_first(person):
    one = person()
    first, second = changed(one, jpeg("red")), changed(one, picture("PNG", "blue"))
    assert first != second
    assert color_at(second) == "blue"
    eventually(lambda: not is_stored(first))  # by a job that follows the one which made the second
    assert is_stored(second)


def test_removing_the_avatar_leaves_the_default_picture(person):
    one = person()
    url = changed(one, jpeg("red"))
    assert one.delete("accounts/avatar")["status"] == "none"
    assert is_default(one)
    eventually(lambda: not is_stored(url))  # by a job that names no user
    assert one.delete("accounts/avatar")["user"]["id"] == str(one.id)  # there is nothing left to remove


def test_without_an_avatar_there_is_the_default_picture(person):
    one = person()
    assert one.get("accounts/avatar")["status"] == "none"
    assert is_default(one)


@pytest.mark.parametrize("upload", [b"not a picture", jpeg(size=(900, 900), quality=95)[:3000], b"GIF89a" + bytes(99)])
def test_what_is_no_picture_changes_nothing_and_its_owner_reads_why(person, upload):
    one = person()
    url = changed(one, jpeg("red"))
    upload_id = one.upload(upload)
    one.post("accounts/avatar", upload_id=upload_id)
    state = eventually(lambda: state if (state := one.get("accounts/avatar"))["status"] == "rejected" else None)
    assert state["message"]
    assert state["user"]["profile_picture"] == url
    settled(one)
    assert color_at(url) == "red"
    assert not exists(settings.S3_UPLOADS_BUCKET, f"{one.id}/{upload_id}")
    assert color_at(changed(one, jpeg("blue"))) == "blue"
    eventually(lambda: not is_stored(url))


# What is refused.


def test_the_upload_of_another_user(person):
    one, thief = person(), person()
    upload_id = one.upload(jpeg())
    meta = refused(thief.post, "accounts/avatar", upload_id=upload_id)
    assert meta["error_type"] == "APIInvalidParametersError"
    assert is_default(thief)
    assert one.post("accounts/avatar", upload_id=upload_id)["message"] == ""


@pytest.mark.parametrize("upload_id", ["", "0" * 32, "../1/abc", "A" * 32])
def test_an_upload_that_there_is_not(person, upload_id):
    one = person()
    meta = refused(one.post, "accounts/avatar", upload_id=upload_id)
    assert meta["error_type"] == "APIInvalidParametersError"
    assert meta["error_message"].startswith("upload_id")
    assert one.get("accounts/avatar")["status"] == "none"


def test_a_token_is_needed():
    for method in ("GET", "POST", "DELETE"):
        response = requests.request(method, f"{settings.SITE_URL}/v1/accounts/avatar?client_id=phone", timeout=10)
        assert response.json()["meta"]["error_type"] == "OAuthParameterException"


def test_asking_again_for_the_same_upload_is_one_change(person):
    one = person()
    upload_id = one.upload(jpeg("red"))
    answers = []

    def ask() -> None:
        answers.append(one.call("POST", "accounts/avatar", form={"upload_id": upload_id}).status_code)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 8
    eventually(lambda: one.get("accounts/avatar")["status"] == "ready")
    settled(one)
    url = one.get("users/self")["profile_picture"]
    assert one.post("accounts/avatar", upload_id=upload_id)["status"] == "ready"  # the upload itself is gone by now
    settled(one)
    assert one.get("users/self")["profile_picture"] == url
    assert color_at(url) == "red"


def test_a_deleted_account_leaves_no_avatar(person):
    one = person()
    url = changed(one, jpeg("red"))
    assert one.call("DELETE", "accounts", form={"password": PASSWORD}).status_code == 200
    settled(one)
    eventually(lambda: not is_stored(url))
    assert not Avatar.objects.filter(user_id=one.id).exists()
