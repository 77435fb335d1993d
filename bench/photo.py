"""A photo's way, as a user waits for it: from the publishing request to the top of a follower's feed.

Through the edge, one photo at a time, each 12 megapixels. The upload to S3 before it depends on the phone's network
and is not in the time; the picture's processing is.
"""

import io
import secrets
import statistics
import threading
import time

import requests
from django.conf import settings
from PIL import Image

PHOTOS = 30
SIZE = (4000, 3000)
POLL_SECONDS = 0.005


def run() -> dict[str, float]:
    photographer, follower = sign_up(), sign_up()
    call("POST", f"users/{photographer['id']}/relationship", follower, action="follow")
    original = picture(SIZE)
    times = []
    for _ in range(PHOTOS):
        form = call("POST", "media/uploads", photographer)
        requests.post(form["url"], data=form["fields"], files={"file": original}, timeout=10).raise_for_status()
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
    form = {"client_id": "phone", "username": name, "password": password, "email": f"{name}@example.com"}
    response = requests.post(f"{settings.SITE_URL}/v1/accounts", data=form, timeout=10)
    response.raise_for_status()
    data = response.json()["data"]
    return {"id": data["user"]["id"], "token": data["access_token"]}


def call(method: str, path: str, who: dict[str, str], **form):
    headers = {"Authorization": f"Bearer {who['token']}"}
    response = requests.request(method, f"{settings.SITE_URL}/v1/{path}", data=form, headers=headers, timeout=10)
    response.raise_for_status()
    return response.json()["data"]
