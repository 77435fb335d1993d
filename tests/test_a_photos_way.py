"""The main job as a user sees it: the README's promise, with curl's eyes."""

import io

import requests
from django.conf import settings
from PIL import Image

from tests.support import eventually, settled

ORIENTATION, GPS = 274, 34853


def snapshot() -> bytes:
    """A photo as a phone takes it upright: the sensor's sideways pixels, the turn in EXIF, and the place."""
    sensor = Image.new("RGB", (1600, 1200), "blue")
    sensor.paste("red", (0, 0, 800, 1200))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[GPS] = {1: "N", 2: (59.0, 54.0, 0.0), 3: "E", 4: (10.0, 45.0, 0.0)}
    out = io.BytesIO()
    sensor.save(out, "JPEG", exif=exif, quality=92)
    return out.getvalue()


def test_a_photo_reaches_a_followers_screen_through_the_cdn(person):
    photographer, follower = person(), person()
    follower.follow(photographer)
    settled(photographer, follower)
    assert follower.feed() == []

    form = photographer.post("media/uploads")
    upload = requests.post(form["url"], data=form["fields"], files={"file": snapshot()}, timeout=10)
    assert upload.status_code == 204
    published = photographer.post("media", upload_id=form["upload_id"], caption="Oslo")
    first = eventually(lambda: follower.get("users/self/feed")[:1], what="the photo is in the feed")[0]
    assert first["id"] == published["id"]
    assert first["caption"]["text"] == "Oslo"

    sizes = {"thumbnail": 150, "low_resolution": 306, "standard_resolution": 612}
    assert set(first["images"]) == set(sizes)
    for name, size in sizes.items():
        url = first["images"][name]["url"]
        assert url.startswith(settings.CDN_URL)
        served = requests.get(url, timeout=10)
        assert served.status_code == 200
        assert "immutable" in served.headers["Cache-Control"]
        again = requests.get(url, timeout=10)
        assert again.headers["X-Cache"] == "HIT"
        assert again.content == served.content
        shown = Image.open(io.BytesIO(served.content))
        assert shown.size == (size, size)
        assert not shown.getexif()
        top, bottom = shown.getpixel((size // 2, 10)), shown.getpixel((size // 2, size - 10))
        assert top[0] > 200 > 60 > top[2]
        assert bottom[2] > 200 > 60 > bottom[0]
