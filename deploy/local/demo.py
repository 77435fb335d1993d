"""Fills a fresh stack with a small world, through the public API alone, and says where to look at it.

Twenty people follow each other and publish sixty photographs: crops of those in Debian's package
lomiri-wallpapers-16.04, which is downloaded and unpacked but not installed; where that fails, drawn ones. Can be run
again after it was interrupted: whoever is there already is kept.
"""

import hashlib
import hmac
import io
import os
import random
import shlex
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests
from PIL import Image, ImageDraw, ImageFilter

sys.path[0] = str(Path(__file__).resolve().parents[2])
from deploy.local import layout  # noqa: E402

LOCAL = Path(__file__).resolve().parents[2] / ".local"
STACK = LOCAL / os.environ.get("STACK", "dev")
PACKAGE = "lomiri-wallpapers-16.04"

PEOPLE = {
    "maya": "Maya Lind", "jonas": "Jonas Berg", "aiko": "Aiko Tanaka", "luis": "Luis Ortega", "freya": "Freya Holm",
    "tomas": "Tomáš Novák", "zoe": "Zoë Martin", "omar": "Omar Haddad", "nina": "Nina Rossi", "kofi": "Kofi Mensah",
    "elsa": "Elsa Virtanen", "pavel": "Pavel Orlov", "ines": "Inês Duarte", "hugo": "Hugo Lambert",
    "mei": "Mei Chen", "sam": "Sam Walker", "ravi": "Ravi Nair", "clara": "Clara Weiss", "leo": "Leo Costa",
    "ida": "Ida Nyström",
}  # fmt: skip
VIEWER = "maya"
FOLLOWS_EACH = 8
PHOTOS = 60
PHOTO_SECONDS = 60
LIKES_EACH, COMMENTS_EACH = 8, 2
CAPTIONS = [
    "Early light #morning #nofilter", "Could stay here for days #travel", "Found this around the corner #walk #city",
    "Colours! #nature", "Sunday #slow #weekend", "The view was worth the climb #hiking", "After the rain #weather",
    "Trying a new angle #photography", "Home again #home", "One more from last week #throwback",
    "So quiet out here #silence #nature", "Golden hour #sunset #goldenhour",
]  # fmt: skip
COMMENTS = ["Beautiful!", "Where is this?", "Love the light", "Wow", "I want to go there", "So good", "Great shot 📷"]
FILTERS = ["Normal", "Hefe", "X-Pro II", "Earlybird", "Lo-fi", "Nashville", "Sutro", "Toaster"]


class Api:
    def __init__(self, site: str, secret: str) -> None:
        self.site = site
        # The same for everybody in the demo, another one in each installation.
        self.password = "demo-" + hmac.new(secret.encode(), b"demo", hashlib.sha256).hexdigest()[:10]

    def call(self, method: str, path: str, token: str = "", /, **form):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        response = requests.request(method, f"{self.site}{path}", data=form, headers=headers, timeout=20)
        if response.status_code != 200:
            raise SystemExit(f"demo: {method} {path}: {response.status_code} {response.text}")
        return response.json()

    def log_in(self, username: str, full_name: str) -> dict:
        """The person's token and ID, after signing up if that is still to be done."""
        login = {"client_id": "phone", "username": username, "password": self.password}
        answer = requests.post(
            f"{self.site}/oauth/access_token", data={"grant_type": "password", **login}, timeout=20
        ).json()
        if "access_token" not in answer:
            email = f"{username}@example.com"
            answer = self.call("POST", "/v1/accounts", **login, email=email, full_name=full_name)["data"]
        return {"username": username, "token": answer["access_token"], "id": answer["user"]["id"]}


def main() -> None:
    env = dict(line.split("=", 1) for line in (STACK / "env").read_text().splitlines())
    api = Api(env["SITE_URL"], env["SECRET_KEY"])
    chance = random.Random(2010)

    print(f"demo: {len(PEOPLE)} people", flush=True)
    with ThreadPoolExecutor(2) as pool:
        people = list(pool.map(api.log_in, PEOPLE, PEOPLE.values()))
    for person in people:
        phone = hashlib.sha256(person["username"].encode()).hexdigest()
        api.call("POST", "/v1/push/devices", person["token"], token=phone, environment="sandbox")
        others = [other for other in people if other is not person]
        for other in chance.sample(others, FOLLOWS_EACH):
            api.call("POST", f"/v1/users/{other['id']}/relationship", person["token"], action="follow")

    there = {person["id"]: published_by(api, person) for person in people}
    missing = [person for n in range(PHOTOS // len(people)) for person in people if there[person["id"]] <= n]
    pictures = photographs(len(missing), chance)
    for count, (person, picture) in enumerate(zip(missing, pictures, strict=True), 1):
        publish(api, person, picture, chance)
        if count % 20 == 0:
            print(f"demo: {count} of {len(missing)} photographs", flush=True)
    wait_until_ready(api, people)
    if missing:
        for person in people:
            respond(api, person, chance)
        share(api, env, next(person for person in people if person["username"] == VIEWER))
    summary = describe(api, env, next(person for person in people if person["username"] == VIEWER))
    (STACK / "summary.txt").write_text(summary)
    print(summary, end="")


def published_by(api: Api, person: dict) -> int:
    return api.call("GET", "/v1/users/self", person["token"])["data"]["counts"]["media"]


def publish(api: Api, person: dict, picture: bytes, chance: random.Random) -> None:
    upload = api.call("POST", "/v1/media/uploads", person["token"])["data"]
    requests.post(upload["url"], data=upload["fields"], files={"file": picture}, timeout=20).raise_for_status()
    place = {"latitude": f"{chance.uniform(-50, 65):.4f}", "longitude": f"{chance.uniform(-120, 140):.4f}"}
    api.call(
        "POST",
        "/v1/media",
        person["token"],
        upload_id=upload["upload_id"],
        caption=chance.choice(CAPTIONS),
        filter=chance.choice(FILTERS),
        **(place if chance.random() < 0.5 else {}),
    )


def respond(api: Api, person: dict, chance: random.Random) -> None:
    """Likes and comments on what is in the person's feed."""
    feed = api.call("GET", "/v1/users/self/feed", person["token"])["data"]
    for media in chance.sample(feed, min(LIKES_EACH, len(feed))):
        api.call("POST", f"/v1/media/{media['id']}/likes", person["token"])
    for media in chance.sample(feed, min(COMMENTS_EACH, len(feed))):
        api.call("POST", f"/v1/media/{media['id']}/comments", person["token"], text=chance.choice(COMMENTS))


def share(api: Api, env: dict[str, str], person: dict) -> None:
    """Links accounts at the doubles of Twitter and Facebook, and shares the person's latest photo there."""
    doubles = env["TWITTER_URL"].rpartition("/")[0]
    for service in ("twitter", "facebook"):
        account = {"service": service, "username": person["username"]}
        opened = requests.get(f"{doubles}/_account", params=account, timeout=20).json()
        del opened["id"]
        api.call("POST", "/v1/shares/accounts", person["token"], **account, **opened)
    media = api.call("GET", "/v1/users/self/media/recent?count=1", person["token"])["data"][0]
    api.call("POST", f"/v1/media/{media['id']}/shares", person["token"], **{"share_to[]": ["twitter", "facebook"]})


def wait_until_ready(api: Api, people: list[dict]) -> None:
    deadline = time.monotonic() + PHOTO_SECONDS
    while sum(published_by(api, person) for person in people) < PHOTOS:
        if time.monotonic() > deadline:
            raise SystemExit(f"demo: not all photographs were ready after {PHOTO_SECONDS} s; are the workers running?")
        threading.Event().wait(0.5)


def photographs(count: int, chance: random.Random) -> list[bytes]:
    """JPEGs of 1600 by 1200 pixels."""
    if not count:
        return []
    originals = wallpapers()
    if not originals:
        print(f"demo: the package {PACKAGE} cannot be had here; the photographs are drawn", flush=True)
    return [crop(originals[n % len(originals)], chance) if originals else draw(chance) for n in range(count)]


def wallpapers() -> list[Path]:
    """The photographs of the package, downloaded once."""
    place = LOCAL / PACKAGE
    found = sorted(place.glob("usr/share/**/*.jpg")) + sorted(place.glob("usr/share/**/*.png"))
    if found:
        return found
    place.mkdir(parents=True, exist_ok=True)
    place.chmod(0o777)  # apt downloads as a user of its own when root asks
    try:
        subprocess.run(["apt-get", "download", PACKAGE], cwd=place, check=True, capture_output=True, timeout=90)
        package = next(place.glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", package, place], check=True, capture_output=True, timeout=60)
        package.unlink()
    except (OSError, subprocess.SubprocessError, StopIteration):
        return []
    finally:
        place.chmod(0o755)
    return sorted(place.glob("usr/share/**/*.jpg")) + sorted(place.glob("usr/share/**/*.png"))


def crop(original: Path, chance: random.Random) -> bytes:
    """A random part of a photograph, half to all of its height."""
    with Image.open(original) as image:
        height = int(image.height * chance.uniform(0.5, 1))
        width = min(image.width, height * 4 // 3)
        left, top = chance.randint(0, image.width - width), chance.randint(0, image.height - height)
        part = image.convert("RGB").crop((left, top, left + width, top + height))
    return to_jpeg(part.resize((1600, 1600 * height // width), Image.Resampling.LANCZOS))


def draw(chance: random.Random) -> bytes:
    """Hills in front of an evening sky."""
    sky = Image.linear_gradient("L").resize((1600, 1200))
    colours = [tuple(chance.randint(40, 255) for _ in range(3)) for _ in range(2)]
    image = Image.composite(Image.new("RGB", sky.size, colours[0]), Image.new("RGB", sky.size, colours[1]), sky)
    paint = ImageDraw.Draw(image)
    x, y, r = chance.randint(200, 1400), chance.randint(150, 600), chance.randint(60, 160)
    paint.ellipse((x - r, y - r, x + r, y + r), fill=(255, 240, 200))
    for n in range(5):
        heights = [chance.randint(450 + 120 * n, 650 + 120 * n) for _ in range(9)]
        shade = 120 - 22 * n
        hill = [(200 * i, height) for i, height in enumerate(heights)]
        paint.polygon([*hill, (1600, 1200), (0, 1200)], fill=(shade // 2, shade, shade))
    return to_jpeg(image.filter(ImageFilter.GaussianBlur(2)))


def to_jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=88)
    return out.getvalue()


def describe(api: Api, env: dict[str, str], viewer: dict) -> str:
    first = api.call("GET", "/v1/users/self/feed?count=1", viewer["token"])["data"][0]
    site, image = env["SITE_URL"], first["images"]["standard_resolution"]["url"]
    stack = layout.Stack(STACK.name)
    stack.load_secrets()
    login = f"client_id=phone&grant_type=password&username={VIEWER}&password={api.password}"
    return f"""
  API        {site}/v1
  reference  {site}/developer/   (try any call there)
  a page     {first["link"]}
  health     {site}/readyz
  photos     {env["CDN_URL"]}/…
  graphs     {site}/munin/   (Munin's; a round each 5 minutes)
  incidents  http://{stack.address("pagerduty")}/   (what the double of PagerDuty got)
  pushes     {STACK / "logs/nginx_apns.access.log"}   (what the double of Apple's servers got)
  shared     {env["TWITTER_URL"].rpartition("/")[0]}/   (what the doubles of Twitter and Facebook got)
  errors     http://{stack.address("bugsink")}/   ({layout.BUGSINK_LOGIN} / {stack.secrets["bugsink_password"]})
  login      {VIEWER} / {api.password}   ({len(PEOPLE)} people, {PHOTOS} photographs)

  Three lines to try: log in; {VIEWER}'s feed; a photo from the CDN (X-Cache: HIT from the second time on).

  curl -s -d {shlex.quote(login)} {site}/oauth/access_token
  curl -s '{site}/v1/users/self/feed?count=2&access_token={viewer["token"]}'
  curl -s -o photo.jpg -D - {image}

  How to sign up and publish a photo of your own with curl: docs/photos.md
"""


if __name__ == "__main__":
    main()
