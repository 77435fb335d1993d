"""From a URL to a service and back: the one place that parses requests, asks who is there, and shapes answers.

An endpoint is a function in an app's `api.py` whose signature says all there is to know:

    def home_feed(viewer: Viewer, count: Count = 20, max_id: MediaId | None = None) -> …

`viewer: Viewer` means that an access token is needed; `viewer: Caller`, that a client_id will do, and that there may be
nobody to whom the answer is. Every other parameter comes from the path, the query or the body (a form or a JSON
object), and is checked by pydantic against its type. The function returns `data`, or `(data, cursor)` for a page, where
`cursor` holds the parameters that ask for the next page, or is empty on the last one. A `min_…` in it is told as it is:
by this, a client can ask later for what has come since.

An endpoint's `foresee(viewer_id, params)` names the commands that it will probably have for the feeds' Redis: they go
along with the first question, which is whether the request may pass.
"""

import inspect
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

import pydantic
from botocore.exceptions import BotoCoreError, ClientError
from django.conf import settings
from django.core.exceptions import BadRequest, RequestDataTooBig, SuspiciousOperation
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, QueryDict, UnreadablePostError
from django.http.multipartparser import MultiPartParserError
from django.urls import re_path
from django.utils.encoding import escape_uri_path

from accounts.errors import InvalidClient, InvalidParameters, InvalidToken, ScopeMissing, ServiceError
from accounts.tokens import Caller, Client, client_of, probable_viewer, viewer_of
from instagram.api import envelope, limits, signatures
from instagram.api.limits import Limit, Standing
from shardmap import redis_client, replicas
from shardmap.redis_client import Command
from shardmap.shards import following_moves
from workers import sentry

logger = logging.getLogger(__name__)

Endpoint = Callable[..., Any]
Success = Callable[[HttpRequest, Any, dict | None], HttpResponse]  # of `data` and `pagination`

SURROGATE = re.compile("[\ud800-\udfff]")
# A server of ours is away; the same request may work in a moment.
AWAY = (OperationalError, InterfaceError, *redis_client.Unavailable, BotoCoreError, ClientError)


@dataclass(frozen=True)
class Route:
    """What a URL pattern answers, as the attribute `route` of its view (the API's description is made of these)."""

    path: str
    endpoints: dict[str, tuple[str, Endpoint]]  # by method, each with the scope that a token needs
    enveloped: bool = True
    form: Any = None  # of a raw view: the type of its parameters


def route(path: str, enveloped: bool = True, **endpoints: Endpoint | tuple[str, Endpoint]):
    """A URL pattern for `path`, e.g. `"v1/users/{user_id}"`, with an endpoint for each method.

    `GET=get_user`, or `POST=("likes", like)` if a token must have another scope than "basic"; a POST then also counts
    against the limit of that name, if there is one, as does a POST without a `viewer`; an endpoint's `limited_as`
    names another. Answers with and without a trailing slash and with `.json`. An answer that is not `enveloped` is
    public (its errors have the envelope).
    """
    with_scopes = {
        method: endpoint if isinstance(endpoint, tuple) else ("basic", endpoint)
        for method, endpoint in endpoints.items()
    }
    pattern = path.replace("{", "(?P<").replace("}", ">[^/]+?)").replace(".", r"\.")
    success = envelope.success if enveloped else envelope.bare

    def view(request: HttpRequest, **path_params: str) -> HttpResponse:
        return _respond(request, with_scopes, path_params, success)

    view.route = Route(path, with_scopes, enveloped)
    return re_path(rf"^{pattern}(?:\.json)?/?$", view, name=path)


def raw(
    path: str,
    method: str,
    view: Callable[[HttpRequest], dict],
    form: Any,
    limited: Callable[[HttpRequest], list[Limit]] = lambda request: [],
):
    """A URL pattern for a view that takes Django's request and whose answer is not wrapped (OAuth's own).

    The request counts against the limits that `limited` names. `form` is the TypedDict of the parameters, for the
    API's description alone: the view checks them.
    """

    def wrapped(request: HttpRequest) -> HttpResponse:
        if request.method != method:
            return method_not_allowed(request, [method])
        standing = None
        try:
            with _reading():  # parsed here, once
                if not request.content_type:  # python-instagram does not say that it sends a form
                    request.POST = QueryDict(request.body)
                _ = request.POST
            standing = limits.ask(limited(request))
            limits.require_passed(standing)
            response = envelope.answer(request, 200, view(request) or {})
        except Exception as error:
            response = _response_to(request, error)
            meta = json.loads(response.content)["meta"]
            # OAuth clients look for the error beside `meta` (python-instagram does).
            response = envelope.answer(request, response.status_code, {"meta": meta, **meta})
        return limits.tell(response, standing)

    wrapped.route = Route(path, {method: ("", view)}, enveloped=False, form=form)
    return re_path(rf"^{path}/?$", wrapped, name=path)


def not_found(request: HttpRequest, exception=None) -> HttpResponse:
    return envelope.error(request, 404, "APINotFoundError", f"there is no path {request.path}")


def bad_request(request: HttpRequest, exception=None) -> HttpResponse:
    return envelope.error(request, 400, "APIInvalidParametersError", "the request cannot be read")


def server_error(request: HttpRequest, user_id: int | None = None) -> HttpResponse:
    """For the exception that is being handled."""
    event_id = sentry.capture_request(request, sys.exception(), user_id)
    return envelope.error(request, 500, "APIError", f"an error of ours, of which we were told as {event_id}")


def method_not_allowed(request: HttpRequest, allowed: list[str]) -> HttpResponse:
    message = f"{request.path} answers to {', '.join(allowed)}, not to {request.method}"
    response = envelope.error(request, 405, "APIInvalidParametersError", message)
    response["Allow"] = ", ".join(allowed)
    return response


def _respond(
    request: HttpRequest, endpoints: dict[str, tuple[str, Endpoint]], path_params: dict[str, str], success: Success
) -> HttpResponse:
    method = "GET" if request.method == "HEAD" else request.method
    if method not in endpoints:
        return method_not_allowed(request, list(endpoints))
    scope, endpoint = endpoints[method]
    standing = signer = user_id = None
    try:
        params = _params(request)
        arguments = {}
        if "viewer" not in parameters(endpoint):
            standing = limits.ask(limits.of_address(request, scope))
            limits.require_passed(standing)
        else:
            limit = getattr(endpoint, "limited_as", scope if method == "POST" else "")
            caller, standing = _caller(request, params, endpoint, limit)
            user_id = caller.user_id
            limits.require_passed(standing)
            signer = signatures.signer_of(request, params, caller.client_id)
            if scope not in caller.scopes:
                raise ScopeMissing(f"this needs the scope {scope!r}, which the access_token lacks")
            arguments["viewer"] = caller
            path_params = _without_self(path_params, caller)
        call = partial(endpoint, **arguments, **_checked(endpoint, params | _lists(request) | path_params))
        # What an endpoint commits to a shard comes last in it, or may be done twice.
        result = following_moves(call)
        if method != "GET" and arguments:
            replicas.note_write_of(caller.user_id)
    except Exception as error:
        return limits.tell(_response_to(request, error, user_id), standing)
    data, cursor = result if isinstance(result, tuple) else (result, None)
    pagination = None if cursor is None else _pagination(request, cursor, signer)
    return limits.tell(success(request, data, pagination), standing)


def _caller(
    request: HttpRequest, params: dict[str, Any], endpoint: Endpoint, limit: str
) -> tuple[Caller, Standing | None]:
    """Who asks, and how the request stands with the limits. Raises InvalidClient, InvalidToken."""
    scheme, _, token = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() != "bearer":
        token = params.get("access_token")
    client_id = params.get("client_id") if parameters(endpoint)["viewer"].annotation is Caller else None
    if isinstance(token, str) and token.strip():
        token = token.strip()
        viewer_id, foresee = probable_viewer(token), getattr(endpoint, "foresee", None)
        ahead = foresee(viewer_id, params) if foresee and viewer_id else ()
        return _identified(partial(viewer_of, token), limits.of_token(token, limit), ahead)
    if isinstance(client_id, str) and client_id:
        return _identified(partial(_nobody, client_id), limits.of_client(client_id))
    raise InvalidClient("Missing client_id or access_token URL parameter.")


def _identified(
    who: Callable[[], Caller], counted: list[Limit], ahead: Sequence[Command] = ()
) -> tuple[Caller, Standing | None]:
    """What `who` returns, or raises; and how the request stands with the limits."""
    standing = limits.ask(counted, ahead=ahead)
    try:
        return who(), standing
    except (InvalidClient, InvalidToken):
        limits.take_back(counted)
        raise


def _nobody(client_id: str) -> Caller:
    """The caller that a client is without a token."""
    return Caller(None, client_of(client_id).client_id, frozenset({"basic"}))


def _without_self(path_params: dict[str, str], caller: Caller) -> dict[str, str]:
    """The parameters of the path, in which `users/self` is the caller. Raises InvalidClient if that is nobody."""
    if path_params.get("user_id") != "self":
        return path_params
    if caller.user_id is None:
        raise InvalidClient("users/self: needs an access_token, since a client_id alone is nobody")
    return path_params | {"user_id": str(caller.user_id)}


@contextmanager
def _reading() -> Iterator[None]:
    """What Django raises for a query or a body that cannot be read becomes InvalidParameters."""
    try:
        yield
    except RequestDataTooBig:
        raise
    except (BadRequest, SuspiciousOperation, LookupError, MultiPartParserError, UnreadablePostError) as error:
        raise InvalidParameters(f"the request cannot be read: {error}") from None


def _params(request: HttpRequest) -> dict[str, Any]:
    """The parameters of the query and of the body, in which the body's win. Raises InvalidParameters."""
    with _reading():
        params: dict[str, Any] = request.GET.dict()
        if request.method != "GET":
            params |= _body(request)
    for name, value in params.items():
        _require_text(name, value)
    return params


def _lists(request: HttpRequest) -> dict[str, list[str]]:
    """The parameters that are lists: in queries and forms their names have a [] (`share_to[]`), in JSON they do not."""
    queries = (request.GET, request.POST)
    lists = {name[:-2]: query.getlist(name) for query in queries for name in query if name.endswith("[]")}
    for name, values in lists.items():
        for value in values:
            _require_text(name, value)
    return lists


def _require_text(name: str, value: Any) -> None:
    """Raises InvalidParameters for what cannot be stored: Postgres refuses NUL, half a surrogate is no text."""
    if isinstance(value, str) and ("\0" in value or (not value.isascii() and SURROGATE.search(value))):
        raise InvalidParameters(f"{name!r}: has a character that is not text")


def _body(request: HttpRequest) -> dict[str, Any]:
    if request.content_type == "application/json" and request.body:
        try:
            body = json.loads(request.body)
        except (ValueError, RecursionError) as error:
            raise InvalidParameters(f"the body is not valid JSON: {error}") from None
        if not isinstance(body, dict):
            raise InvalidParameters("the body must be a JSON object")
        return body
    if request.method == "POST":
        return request.POST.dict()
    return QueryDict(request.body).dict()


@cache
def parameters(endpoint: Endpoint) -> MappingProxyType[str, inspect.Parameter]:
    return inspect.signature(endpoint).parameters


@cache
def model(endpoint: Endpoint) -> type[pydantic.BaseModel]:
    """A pydantic model of an endpoint's parameters, but for its `viewer`."""
    fields = {
        name: (parameter.annotation, ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in parameters(endpoint).items()
        if name != "viewer"
    }
    return pydantic.create_model(endpoint.__name__, **fields)


def _checked(endpoint: Endpoint, params: dict[str, Any]) -> dict[str, Any]:
    wanted = model(endpoint)
    # An empty value in a form or a query means that nothing was given.
    given = {name: value for name, value in params.items() if value != ""}
    try:
        checked = wanted.model_validate(given)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise InvalidParameters(f"{first['loc'][0]}: {first['msg'].removeprefix('Value error, ')}") from None
    return checked.__dict__


def _pagination(request: HttpRequest, cursor: dict[str, str], signer: Client | None) -> dict[str, str]:
    """How to ask for the next page; if this one was asked for with a signature, the `next_url` has one of its own."""
    newer = {name: value for name, value in cursor.items() if name.startswith("min_")}
    older = {name: value for name, value in cursor.items() if name not in newer}
    if not older:
        return newer
    query = request.GET.dict() | older
    query.pop("callback", None)
    query.pop("sig", None)
    path = escape_uri_path(request.path)
    if signer is not None:
        query["sig"] = signatures.sign(path.removeprefix("/v1"), query, signer.secret)
    next_url = f"{settings.SITE_URL}{path}?{urlencode(query)}"
    return newer | {f"next_{name}": value for name, value in older.items()} | {"next_url": next_url}


def _response_to(request: HttpRequest, error: Exception, user_id: int | None = None) -> HttpResponse:
    match error:
        case ServiceError():
            return envelope.error(request, error.code, error.error_type, str(error))
        case RequestDataTooBig():
            message = f"the body is larger than {settings.DATA_UPLOAD_MAX_MEMORY_SIZE} bytes"
            return envelope.error(request, 413, "APIInvalidParametersError", message)
        case _ if isinstance(error, AWAY):
            logger.warning("%s %s: %s: %s", request.method, request.path, type(error).__name__, error)
            event_id = sentry.capture_away(request, error, user_id)
            message = f"we cannot answer that right now; please try again in a moment ({event_id})"
            response = envelope.error(request, 503, "APIError", message)
            response["Retry-After"] = "1"
            return response
        case _:
            logger.exception("%s %s", request.method, request.path)
            return server_error(request, user_id)
