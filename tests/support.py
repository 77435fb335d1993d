"""What tests share: waiting for a condition, people who use the API, pictures, and the switches of the stack."""

import datetime
import io
import itertools
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests
from django.conf import settings
from django.db import Error, connections
from django.forms import model_to_dict
from django.utils import timezone
from PIL import Image

from workers.models import OutboxJob

PASSWORD = "correct horse battery"
_numbers = itertools.count()


def eventually(condition: Callable[[], Any], seconds: float = 10, what: str = "") -> Any:
    """Waits until `condition()` is true, and returns what it returned; fails after `seconds`.

    The longer it has taken, the more seldom it looks: looking takes the processor from who is waited for.
    """
    start = time.monotonic()
    while True:
        if result := condition():
            return result
        waited = time.monotonic() - start
        assert waited < seconds, f"not within {seconds} s: {what or condition}"
        threading.Event().wait(0.01 + waited / 10)


def get(path: str, **options) -> requests.Response:
    """A GET at the edge."""
    return requests.get(settings.SITE_URL + path, timeout=20, **options)


def ctl(action: str, *programs: str) -> None:
    """Starts, stops, restarts or kills programs of the stack under test."""
    stack = settings.BASE_DIR / "deploy/local/stack.py"
    command = [sys.executable, stack, "ctl", action, *programs]
    subprocess.run(command, check=True, timeout=60)  # of the stack that STACK names


def new_username() -> str:
    return f"u{next(_numbers)}_{secrets.token_hex(4)}"


class Refused(AssertionError):
    """The API answered with an error."""

    def __init__(self, response: requests.Response) -> None:
        self.meta = response.json()["meta"]
        super().__init__(f"{response.request.method} {response.request.path_url}: {self.meta}")


class Person:
    """Somebody with a phone: signs up, and then uses the API through the edge."""

    def __init__(self, username: str | None = None) -> None:
        self.username = username or new_username()
        self.token = ""
        answer = self.post(
            "accounts",
            client_id="phone",
            username=self.username,
            password=PASSWORD,
            email=f"{new_username()}@example.com",
            full_name="Somebody",
        )
        self.token = answer["access_token"]
        self.id = int(answer["user"]["id"])

    def call(self, method: str, path: str, params: dict | None = None, form: dict | None = None) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        url = f"{settings.SITE_URL}/v1/{path}"
        return requests.request(method, url, params=params, data=form, headers=headers, timeout=20)

    def get(self, path: str, **params) -> Any:
        return _data(self.call("GET", path, params=params))

    def post(self, path: str, **form) -> Any:
        return _data(self.call("POST", path, form=form))

    def delete(self, path: str) -> Any:
        return _data(self.call("DELETE", path))

    def follow(self, other: "Person") -> dict:
        return self.post(f"users/{other.id}/relationship", action="follow")

    def unfollow(self, other: "Person") -> dict:
        return self.post(f"users/{other.id}/relationship", action="unfollow")

    def block(self, other: "Person") -> dict:
        return self.post(f"users/{other.id}/relationship", action="block")

    def counts(self) -> dict:
        return self.get("users/self")["counts"]

    def upload(self, photo: bytes, content_type: str = "image/jpeg") -> str:
        """Uploads bytes as a phone does; returns the upload_id."""
        form = self.post("media/uploads", content_type=content_type)
        response = requests.post(form["url"], data=form["fields"], files={"file": photo}, timeout=20)
        assert response.status_code == 204, response.text
        return form["upload_id"]

    def publish(self, photo: bytes | None = None, **params) -> dict:
        """Uploads and publishes; returns the media, which is still being processed."""
        return self.post("media", upload_id=self.upload(photo or jpeg()), **params)

    def take(self, photo: bytes | None = None, **params) -> dict:
        """`publish`, and waits until the photo is ready."""
        media = self.publish(photo, **params)
        return eventually(lambda: self.ready(media["id"]), what=f"media {media['id']} is ready")

    def ready(self, media_id: str) -> dict | None:
        media = self.get(f"media/{media_id}")
        assert media["status"] != "rejected", media["message"]
        return media if media["status"] == "ready" else None

    def feed(self, **params) -> list[str]:
        """The IDs of the media in the home feed."""
        return [media["id"] for media in self.get("users/self/feed", **params)]


def _data(response: requests.Response) -> Any:
    if response.status_code != 200:
        raise Refused(response)
    return response.json()["data"]


def jpeg(color: str = "teal", size: tuple[int, int] = (700, 500), **options) -> bytes:
    return picture("JPEG", color, size, **options)


def picture(kind: str, color: str = "teal", size: tuple[int, int] = (700, 500), **options) -> bytes:
    """A picture of one colour in the given format."""
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, kind, **options)
    return out.getvalue()


def photo_id(media_id: str) -> int:
    return int(media_id.split("_")[0])


def outbox() -> list[OutboxJob]:
    """All jobs that are still to be done, of all databases.

    A job that is done between two looks may have left another one in a database that was looked at before. So each is
    looked at twice, the second time the other way round.
    """
    databases = ["default", *settings.SHARD_SERVERS]
    rows = [row for database in [*databases, *reversed(databases)] for row in OutboxJob.objects.using(database).all()]
    return list({(row._state.db, row.id): row for row in rows}.values())


def jobs_of(*user_ids: int) -> list[OutboxJob]:
    """The jobs still to be done that name one of these users; without those for later, which have not been tried.

    (A callback's number may be that of a user: its job comes again and again while it is away. And what is for later,
    as when an account is deleted, begins to count when it comes well before `settled` gives up.)
    """
    now = timezone.now()
    soon = now + datetime.timedelta(seconds=12)  # longer than outbox.GRACE and RESUBMIT
    return [
        row
        for row in outbox()
        if row.job != "notifications.deliver"
        and {v for v in row.args.values() if isinstance(v, int)} & set(user_ids)
        and (row.attempts or row.held_until > now or row.due_at < soon)
    ]


def settled(*people: Person) -> None:
    """Waits until no job is left that has to do with these people."""
    ids = [one.id for one in people]

    def left() -> str:
        try:
            return "\n".join(str(model_to_dict(job)) for job in jobs_of(*ids))
        except Error as error:  # our connection's server was killed by the test
            connections.close_all()
            return str(error)

    try:
        eventually(lambda: not left(), 20)
    except AssertionError:
        at_work = "\n".join(title for title in titles() if title.startswith("worker "))
        raise AssertionError(
            f"not done within 20 s, for users {ids}, at {timezone.now()}:\n{left()}\nAll stacks' processes:\n{at_work}"
        ) from None


def titles() -> list[str]:
    """What the machine's processes call themselves."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            found.append(file.read_text().rstrip("\0 "))
    return found


def is_back() -> bool:
    """Whether pgbouncer lets clients through to each Postgres, and the app is ready: what /readyz says may be older."""
    try:
        for database in ["default", *settings.SHARD_SERVERS]:
            with connections[database].cursor() as cursor:
                cursor.execute("SELECT 1")
    except Error:
        connections.close_all()
        return False
    return get("/readyz").status_code == 200


def apns_log() -> Path:
    """Where the stack's double of APNs notes each request, in a line of JSON."""
    return settings.BASE_DIR / f".local/{os.environ['STACK']}/logs/nginx_apns.access.log"


OURS = "feed0000"  # how the tokens begin by which APNs' double is asked whether it has come so far


def apns_requests(token: str = "") -> list[dict]:
    """All that APNs was asked; or what it was for one device.

    The double notes a request once it has answered it, one after the other. So one of ours, which it is asked last and
    which is left out, shows that it has noted all.
    """
    last = f"{OURS}{secrets.token_hex(28)}"
    url = f"{settings.APNS_URLS['production']}/3/device/{last}"
    assert requests.get(url, verify=settings.APNS_CA_FILE, timeout=5).status_code == 200
    lines = eventually(lambda: last in (text := apns_log().read_text()) and text.splitlines())
    return [json.loads(line) for line in lines if token in line and f"/device/{OURS}" not in line]
