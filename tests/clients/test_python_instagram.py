"""The reference client, `python-instagram` 1.3.2 from PyPI, unmodified but for host and protocol."""

import hashlib
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from django.conf import settings

from tests.accounts.test_oauth import Browser, Client
from tests.instagram.test_limits import requests_of, use_up
from tests.support import PASSWORD, Person, settled

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements.txt"
ALL_SCOPES = "basic comments likes relationships"


@pytest.fixture(scope="module")
def packages() -> Path:
    """A directory with the client and what it needs; made once for each version of the requirements."""
    version = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    packages = settings.BASE_DIR / f".local/python-instagram-{version}"
    if not packages.exists():
        draft = packages.with_suffix(".new")
        shutil.rmtree(draft, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", draft]
        subprocess.run([*pip, "-r", REQUIREMENTS], check=True, timeout=300)
        draft.rename(packages)
    return packages


def run(packages: Path, world: dict) -> None:
    process = subprocess.run(
        [sys.executable, HERE / "python_instagram_run.py"],
        input=json.dumps(world),
        env=os.environ | {"PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert process.returncode == 0, process.stdout + process.stderr


def known(person: Person) -> dict:
    return {"id": str(person.id), "username": person.username, "token": person.token}


def test_every_method(packages):
    me, friend, private, tired = (Person() for _ in range(4))
    private.post("accounts/edit", is_private="true")
    place = {
        "latitude": f"{random.uniform(-80, 80):.6f}",
        "longitude": f"{random.uniform(-179, 179):.6f}",
        "location_name": "Ferry Building",
        "foursquare_v2_id": secrets.token_hex(12),
    }
    tag = f"t{secrets.token_hex(6)}é"
    caption = f"over the bay #{tag}"
    photos = []
    for _ in range(5):
        photos.append(friend.take(caption=caption, **place))
        settled(friend)  # tagged one after the other
    use_up(requests_of(tired.token))
    mine, developer = Browser(me), Browser(Person())
    app, signing = Client(developer), Client(developer)
    developer.submit(developer.open(signing.path), "Save", must_sign="on")
    run(
        packages,
        {
            "host": urlsplit(settings.SITE_URL).netloc,
            "me": known(me),
            "friend": known(friend),
            "private": known(private),
            "password": PASSWORD,
            "tired_token": tired.token,
            "reader_token": app.token_of(mine, scope="basic"),
            "app": {"id": app.id, "secret": app.secret, "redirect_uri": app.redirect_uri},
            "code": app.allowed(mine, scope=ALL_SCOPES)["code"],
            "signing": {"id": signing.id, "secret": signing.secret},
            "signing_token": signing.token_of(mine, scope=ALL_SCOPES),
            "photos": [media["id"] for media in photos[::-1]],
            "shortcode": photos[-1]["link"].rstrip("/").rpartition("/")[2],
            "caption": caption,
            "tag": tag,
            "place": photos[0]["location"],
            "foursquare": place["foursquare_v2_id"],
        },
    )
