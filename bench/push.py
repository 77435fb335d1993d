"""Notifications a second, from `notify` at the pyapns service to the 200 of the local double of APNs.

Beside it what else one could take, straight to the same double over one connection: httpx, and @parse/node-apn where
Node is installed. They are run in turn, each as many times.
"""

import asyncio
import json
import logging
import secrets
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import httpx
from django.conf import settings

from notifications.pyapns import client

PLOTTED = ("notifications/s",)
ROUNDS = 3
CALLERS, A_CALL = 4, 1000
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
    }


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
