"""Notifications a second, from `notify` at the pyapns service to the 200 of the local double of APNs.

Beside it what else one could take, straight to the same double over one connection: httpx, and @parse/node-apn where
Node is installed. They are run in turn, each as many times.

And how soon a like is a push: from its answer, through the edge, to the double, while so many likes a second are given.
"""

import asyncio
import json
import logging
import secrets
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles

import httpx
from django.conf import settings

from bench import own_stack, world
from bench.photo import call
from deploy.local.layout import Stack
from notifications.models import Device
from notifications.pyapns import client
from photos.services import newest_of

OWN_STACK = True
PLOTTED = ("notifications/s",)
ROUNDS = 3
CALLERS, A_CALL = 4, 1000
PEOPLE = 1000
WARM_UP, SECONDS, LIKES_A_SECOND = 1800, 20, (60, 90)
ARRIVE_SECONDS = 60
NODE_APN = "@parse/node-apn@8.1.0"
NOTIFICATION = {
    "aps": {"alert": {"body": "ann and 99 others liked your photo."}, "badge": 3, "sound": "default"},
    "link": "instagram://media?id=1234567890123456789_42",
}


logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of each request


def run(n: int = 30_000) -> dict[str, float]:
    ways = {"pyapns": (_service, n), "httpx": (_httpx, n // 10)}
    if shutil.which("npm"):
        _install_node_apn()
        ways["node-apn"] = (_node_apn, n)
    for send, _ in ways.values():
        send(_tokens(500))
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (send, count) in ways.items():
            tokens = _tokens(count)
            rates[name].append(count / send(tokens))
    return {
        "notifications": n,
        **{f"{name}, notifications/s": round(median(some)) for name, some in rates.items()},
        **{
            f"pyapns / {name}": round(median(a / b for a, b in zip(rates["pyapns"], rates[name], strict=True)), 1)
            for name in list(rates)[1:]
        },
        **_likes(),
    }


def _likes() -> dict[str, float]:
    """Each on a photo of its own, whose owner has a phone."""
    settings.DATABASE_ANSWER_SECONDS = 600  # people take a while to make
    tokens = world.make(PEOPLE)
    Device.objects.bulk_create(
        Device(token=f"{user_id:064x}", user_id=user_id, environment="sandbox") for user_id in range(1, PEOPLE + 1)
    )
    likers = list(tokens)
    photos = newest_of(list(range(1, PEOPLE + 1)), None, WARM_UP + SECONDS * sum(LIKES_A_SECOND))

    def like(number: int, at: float) -> tuple[str, float]:
        """The photo, and when its like was answered."""
        photo_id, owner_id = photos[number]
        in_turn = (likers[(number + step) % len(likers)] for step in range(len(likers)))
        liker = next(one for one in in_turn if one != owner_id and (owner_id - one) % PEOPLE not in world.OFFSETS)
        threading.Event().wait(max(0, at - time.time()))
        call("POST", f"media/{photo_id}_{owner_id}/likes", {"token": tokens[liker]})
        return f"{photo_id}_{owner_id}", time.time()

    def give(numbers: range, a_second: float) -> list[float]:
        """Seconds from each like's answer to its push."""
        start = time.time() + 1
        with ThreadPoolExecutor(32) as phones:
            answered = dict(phones.map(lambda number: like(number, start + (number - numbers[0]) / a_second), numbers))
        deadline = time.time() + ARRIVE_SECONDS
        while missing := answered.keys() - (arrived := _pushes_arrived()).keys():
            if time.time() > deadline:
                raise TimeoutError(f"{len(missing)} of {len(numbers)} likes are no pushes after {ARRIVE_SECONDS} s")
            time.sleep(1)
        return [arrived[photo] - at for photo, at in answered.items()]

    # Until each server process has met most shards and people, which takes it longer than a like.
    give(range(WARM_UP), LIKES_A_SECOND[0] / 2)
    found, first = {}, WARM_UP
    for rate in LIKES_A_SECOND:
        cuts = quantiles([1000 * late for late in give(range(first, first + SECONDS * rate), rate)], n=100)
        what = f"ms from like to APNs at {rate} likes/s"
        found |= {f"{what}, p50": round(cuts[49]), f"{what}, p99": round(cuts[98])}
        first += SECONDS * rate
    return found


def _pushes_arrived() -> dict[str, float]:
    """Photo's ID → when the double got its first push."""
    lines = (Stack(own_stack.NAME).logs / "nginx_apns.access.log").read_text().splitlines()
    found = [(json.loads(one["payload"])["link"].rpartition("=")[2], one["time"]) for one in map(json.loads, lines)]
    return dict(reversed(found))


def _tokens(count: int) -> list[str]:
    """As the double does not log."""
    return ["be4c" + secrets.token_hex(30) for _ in range(count)]


def _service(tokens: list[str]) -> float:
    """Seconds, as all below."""
    calls = [tokens[at : at + A_CALL] for at in range(0, len(tokens), A_CALL)]
    began = time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as callers:
        for refused in callers.map(lambda some: client.notify("sandbox", some, [NOTIFICATION] * len(some)), calls):
            assert refused == []
    return time.perf_counter() - began


def _httpx(tokens: list[str]) -> float:
    async def send() -> float:
        limits = httpx.Limits(max_connections=1)
        context = httpx.create_ssl_context(verify=settings.APNS_CA_FILE)
        async with httpx.AsyncClient(http2=True, http1=False, verify=context, limits=limits, timeout=30) as http:
            waiting = iter(tokens)

            async def sender() -> None:
                for token in waiting:
                    url = f"{settings.APNS_URLS['sandbox']}/3/device/{token}"
                    answer = await http.post(url, json=NOTIFICATION, headers={"apns-topic": "com.example"})
                    assert answer.status_code == 200, answer.text

            began = time.perf_counter()
            await asyncio.gather(*(sender() for _ in range(100)))
            return time.perf_counter() - began

    return asyncio.run(send())


def _node() -> Path:
    return settings.BASE_DIR / ".local/node"


def _install_node_apn() -> None:
    if not (_node() / "node_modules").exists():
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(_node()), NODE_APN]
        subprocess.run(command, check=True, timeout=300)


def _node_apn(tokens: list[str]) -> float:
    asked = {
        "address": settings.APNS_URLS["sandbox"],
        "ca": settings.APNS_CA_FILE,
        "key": settings.APNS_KEY_FILE,
        "keyId": settings.APNS_KEY_ID,
        "teamId": settings.APNS_TEAM_ID,
        "tokens": tokens,
        "notification": NOTIFICATION,
        "module": str(_node() / "node_modules/@parse/node-apn"),
    }
    script = str(Path(__file__).with_suffix(".js"))
    command = ["node", script]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True, timeout=120)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["sent"] == len(tokens), answer
    return answer["seconds"]
