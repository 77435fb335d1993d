"""Signed requests: `sig` is the HMAC-SHA256 of `endpoint|key=value|…` with the client's secret (docs/api.md).

As in Instagram's "Secure API Requests" (2015): the endpoint is the path after /v1 as it was sent, the parameters are
all those of the query and of the body but `sig`, sorted by name. The reference is `OAuth2Request._generate_sig` of
python-instagram 1.3.2, which differs in two things, so that either way is taken:

- of a POST it signs the query alone;
- on Python 3 it signs text as `b'…'`, since it has encoded it before.
"""

import hmac
import re
from collections.abc import Iterator, Mapping
from typing import Any

from django.http import HttpRequest

from accounts.errors import SignatureWrong
from accounts.tokens import PHONE, Client, client_of

NUMBER = re.compile(r"-?\d+(\.\d+)?", re.ASCII)
CREDENTIALS = ("access_token", "client_id", "client_secret")


def sign(endpoint: str, params: Mapping[str, Any], secret: str) -> str:
    """The signature of a request, e.g. of `"/users/self"` with `{"access_token": …}`."""
    text = endpoint + "".join(f"|{name}={params[name]}" for name in sorted(params))
    return hmac.digest(secret.encode(), text.encode(), "sha256").hex()


def endpoint_of(request: HttpRequest) -> str:
    """The path after /v1, with its %-escapes."""
    # gunicorn's; Django has decoded its own.
    return request.META["RAW_URI"].split("?")[0].removeprefix("/v1")


def signer_of(request: HttpRequest, params: Mapping[str, Any], client_id: str | None) -> Client | None:
    """The client if it has signed the request, whose parameters (those of query and body) are `params`.

    None for a request without a `sig`. Raises SignatureWrong: it does not fit, or has to be there and is not.
    """
    given = params.get("sig")
    if client_id is None or (client_id == PHONE and not given):  # the phone app cannot keep a secret
        return None
    client = client_of(client_id)
    if not given:
        if client.must_sign:
            raise SignatureWrong("Invalid signed-request: Missing required parameter 'sig'")
        return None
    right = (sign(endpoint_of(request), signed, client.secret) for signed in _ways(request.GET.dict(), params))
    if not any(hmac.compare_digest(str(given).encode(), one.encode()) for one in right):
        raise SignatureWrong("Invalid signed-request: Signature does not match")
    return client


def _ways(query: dict[str, Any], params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What may have been signed."""
    for signed in (params, query):
        plain = {name: value for name, value in signed.items() if name != "sig"}
        yield plain
        yield {
            name: value if name in CREDENTIALS or NUMBER.fullmatch(str(value)) else str(value).encode()
            for name, value in plain.items()
        }
