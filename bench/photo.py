"""A photo's way, as a user waits for it: from the publishing request to the top of a follower's feed.

Through the edge, one photo at a time, each 12 megapixels. The upload to S3 before it depends on the phone's network
and is not in the time; the picture's processing is.
"""

import io
import secrets
import statistics
import threading
import time
from urllib.parse import urlencode

import urllib3
from django.conf import settings
from PIL import Image

PHOTOS = 30
SIZE = (4000, 3000)
POLL_SECONDS = 0.005

# They keep their connections. Not `requests`: it takes twice the CPU, of which the stack needs all.
PHONES = urllib3.PoolManager(maxsize=300, timeout=10, retries=False)


def run() -> dict[str, float]:
    photographer, follower = sign_up(), sign_up()
    call("POST", f"users/{photographer['id']}/relationship", follower, action="follow")
    original = picture(SIZE)
    times = []
    for _ in range(PHOTOS):
        form = call("POST", "media/uploads", photographer)
        upload(form, original)
        start = time.perf_counter()
        media = call("POST", "media", photographer, upload_id=form["upload_id"])
        answered = time.perf_counter() - start
        while [shown["id"] for shown in call("GET", "users/self/feed?count=1", follower)] != [media["id"]]:
            threading.Event().wait(POLL_SECONDS)
        times.append((answered, time.perf_counter() - start))
    answers, arrivals = zip(*times, strict=True)
    return {
        "photos": PHOTOS,
        "bytes a photo": len(original),
        "publish answered, median ms": round(statistics.median(answers) * 1000, 1),
        "in the feed, median ms": round(statistics.median(arrivals) * 1000, 1),
        "in the feed, slowest ms": round(max(arrivals) * 1000, 1),
    }


def picture(size: tuple[int, int]) -> bytes:
    """A JPEG with the detail of a photograph: smooth areas, and noise that JPEG cannot compress away."""
    smooth = Image.merge("RGB", [Image.linear_gradient("L").resize(size).rotate(turn) for turn in (0, 90, 180)])
    noise = Image.effect_noise(size, 40).convert("RGB")
    out = io.BytesIO()
    Image.blend(smooth, noise, 0.15).save(out, "JPEG", quality=88)
    return out.getvalue()


def sign_up() -> dict[str, str]:
    name = f"bench_{secrets.token_hex(6)}"
    password = f"correct horse {secrets.token_hex(4)}"  # random digits alone may be refused: too similar to the name
    data = _request("POST", "accounts", {}, client_id="phone", username=name, password=password, email=f"{name}@e.test")
    return {"id": data["user"]["id"], "token": data["access_token"]}


def call(method: str, path: str, who: dict[str, str], **form: str):
    """The `data` of the answer to a request by somebody who signed up."""
    return _request(method, path, {"Authorization": f"Bearer {who['token']}"}, **form)


def publish(original: bytes, who: dict[str, str]) -> dict:
    """Uploads a photo and publishes it."""
    form = call("POST", "media/uploads", who)
    upload(form, original)
    return call("POST", "media", who, upload_id=form["upload_id"])


def upload(form: dict, original: bytes) -> None:
    """Sends a photo to S3 by the form that the API gave for it."""
    answer = PHONES.request("POST", form["url"], fields={**form["fields"], "file": ("photo.jpg", original)})
    if answer.status >= 300:
        raise RuntimeError(f"S3 answered {answer.status} to an upload: {answer.data[:300]!r}")


def _request(method: str, path: str, headers: dict[str, str], **form: str):
    url = f"{settings.SITE_URL}/v1/{path}"
    headers = {"Content-Type": "application/x-www-form-urlencoded", **headers}
    answer = PHONES.request(method, url, body=urlencode(form) if form else None, headers=headers)
    if answer.status >= 300:
        raise RuntimeError(f"{method} {path} answered {answer.status}: {answer.data[:300]!r}")
    return answer.json()["data"]
