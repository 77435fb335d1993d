"""The API described by OpenAPI 3.1, for `GET /developer/openapi.json` and the pages of /developer/ (docs/api.md).

It is made of the code: the routes, the endpoints' signatures, docstrings and types, and the errors. So there is nothing
to keep up to date; and whether the answers are as described, the tests ask (tests/instagram/test_schemathesis.py).
"""

import hashlib
import inspect
import json
from collections.abc import Iterator
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import get_resolver
from django.views.decorators.http import condition
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from accounts.errors import ServiceError
from accounts.tokens import Caller
from accounts.types import WRITTEN, Cursor
from instagram.api.dispatch import OUR_FAULT, Endpoint, Route, method_not_allowed, model, parameters

OVERVIEW = {
    "Paths": "Each path also answers with a slash at its end, and with `.json`. Where a GET is, a HEAD is too. A GET "
    "with `callback` is answered by a call of that function in JavaScript (JSONP). A POST takes a form or a JSON "
    "object.",
    "Answers": 'An answer is `{"meta": {"code": 200}, "data": …}`, an error `{"meta": {"code", "error_type", '
    '"error_message"}}` with the same HTTP status. IDs and times (in seconds since 1970) are strings. New fields may '
    "come at any time: pass over those that you do not know.",
    "Authentication": "Calls need an access token, by OAuth 2 from `/oauth/authorize`; send it as `Authorization: "
    "Bearer …`, or as the parameter `access_token`. Those that write need one with the scope that they name. Some "
    "also take the `client_id` of an app alone, for what is public. If an app has asked for it, each of its "
    "requests must be signed: `sig` is the HMAC-SHA256, with its secret, of the path after `/v1` and of "
    "`|name=value` for each parameter in the order of their names.",
    "Paging": "`count` says how many items you want. When there are more, `pagination` has the `next_url`, and the "
    "parameter of which it is made. A page may have fewer items than `count`, even none, and not be the last one: "
    "the last one is the one without a `next_url`.",
    "Limits": "An access token, and an app without one, has {requests} requests in any hour; of those, a token has "
    "{comments} comments, {likes} likes and {relationships} changes of relationships. `X-Ratelimit-Remaining` says "
    "how many are left, and with a 429, `Retry-After` for how many seconds to wait.",
}

# What a parameter means, wherever it comes.
MEANINGS = {
    "action": "What to do",
    "aspect": "What about it: its photos",
    "bio": "A text about the user",
    "callback_url": "Where updates are sent",
    "caption": "The text below the photo, in which `#words` are tags",
    "client_id": "The app's ID",
    "client_secret": "The app's secret, unless it runs where nothing stays secret",
    "code": "The code",
    "code_verifier": "The verifier that the code's `code_challenge` was made of (PKCE)",
    "comment_id": "A comment's ID",
    "comments": "Of whose comments to notify",
    "content_type": "What will be uploaded: `image/jpeg`, `image/png`, `image/webp`, `image/heic` or `image/heif`",
    "count": "How many items are wanted at most",
    "cursor": "Where the page begins: the `next_cursor` of the one before",
    "distance": "How far around the point, in metres",
    "email": "An email address, which nobody sees",
    "environment": "Which of Apple's push services the phone uses",
    "filter": "The name of the filter that was put on the photo",
    "first_photos": "Of whose first photos to notify",
    "follow_requests": "Of whose requests to follow to notify",
    "follows": "Of which new followers to notify",
    "format": "`json`, the only one there is",
    "foursquare_v2_id": "The place's ID on Foursquare",
    "friends_joined": "Of which friends to notify who join",
    "full_name": "The user's name in full",
    "geography_id": "The ID that a subscription to a geography has as its `object_id`",
    "grant_type": "What is given for the token",
    "id": "A subscription's ID",
    "is_private": "Whether the account is private",
    "language": "Of the notifications",
    "lat": "The point's latitude",
    "latitude": "Where the photo was taken",
    "likes": "Of whose likes to notify",
    "lng": "The point's longitude",
    "location_id": "A place's ID",
    "location_name": "The name of a place that may be new",
    "longitude": "Where the photo was taken",
    "max_id": "Photos before this one: the `next_max_id` of the page before",
    "max_like_id": "Likes before this one: the `next_max_like_id` of the page before",
    "max_tag_id": "Taggings before this one: the `next_max_tag_id` of the page before",
    "max_timestamp": "Until this time, in seconds since 1970",
    "maxheight": "The most pixels that there is room for",
    "maxwidth": "The most pixels that there is room for",
    "media_id": "A photo's ID, with or without the `_` and the owner's ID",
    "mentions": "Of whose mentions to notify",
    "min_id": "Photos after this one",
    "min_tag_id": "Taggings after this one",
    "min_timestamp": "From this time on, in seconds since 1970",
    "name": "The tag's name, without its #",
    "new_password": "The password as it shall be",
    "object": "What has the photos",
    "object_id": "The tag's name, or the place's ID",
    "old_password": "The password as it is",
    "password": "The user's password",
    "q": "What to look for",
    "quiet_from": "When notifications stop, `hh:mm`",
    "quiet_to": "When they come again",
    "radius": "The geography's radius, in metres",
    "redirect_uri": "The one that the code came to",
    "scope": "The scopes that are wanted, with blanks between; all if there is none",
    "secret": "What the service gave for it, with the token",
    "service": "The other service",
    "text": "The comment, up to 300 characters",
    "time_zone": "Of the quiet hours, like `Europe/Berlin`",
    "token": "An access token",
    "upload_id": "That of `POST /v1/media/uploads`",
    "url": "The photo's permalink",
    "user_id": "A user's ID, or `self`: the one whose token it is",
    "username": "1 to 30 characters of a-z, 0-9, dot and underscore",
    "verify_token": "Comes back with the challenge of the `callback_url`",
    "website": "An address of the user's, `http://…` or `https://…`",
}

RELATIONSHIPS = {"follows", "followed-by", "requested-by", "relationship"}
REF = "#/components/schemas/{model}"

# Beside the errors of services: those that the dispatcher and nginx make.
DISPATCHERS_ERRORS = (
    (404, "APINotFoundError", "There is no such path."),
    (405, "APIInvalidParametersError", "The path does not take this method; the header `Allow` names those it takes."),
    (413, "APIInvalidParametersError", "The body is larger than 1 MB."),
    (500, "APIError", f"{OUR_FAULT.capitalize()}."),
    (503, "APIError", "A server of ours is away; the same request may work in a moment."),
)
LIMIT_HEADERS = {
    "X-Ratelimit-Limit": {"description": "How many requests an hour has", "schema": {"type": "integer"}},
    "X-Ratelimit-Remaining": {"description": "How many of them are left", "schema": {"type": "integer"}},
}
RETRY_HEADER = {"Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer"}}}

Schema = dict[str, Any]


class Undescribed(Exception):
    """An endpoint from which no description can be made; the message says what it lacks."""


def serve(request: HttpRequest) -> HttpResponse:
    """The description, as JSON."""
    if request.method not in ("GET", "HEAD"):
        return method_not_allowed(request, ["GET"])
    return _serve(request)


@condition(etag_func=lambda request: f'"{hashlib.sha256(_text()).hexdigest()[:32]}"')
def _serve(request: HttpRequest) -> HttpResponse:
    response = HttpResponse(_text(), content_type="application/json; charset=utf-8")
    response["Cache-Control"] = "public, max-age=300"
    response["X-Content-Type-Options"] = "nosniff"
    return response


@cache
def _text() -> bytes:
    return json.dumps(description(), ensure_ascii=False, separators=(",", ":")).encode()


@cache
def description() -> dict:
    """The OpenAPI document; made when it is first asked for. Raises Undescribed."""
    schemas: dict[str, Schema] = {}
    paths = {
        f"/{route.path}": {method.lower(): operation_of(route, method, schemas) for method in route.endpoints}
        for route in routes()
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Instagram API",
            "version": "1",
            "description": "\n\n".join(f"## {heading}\n\n{text}" for heading, text in overview().items()),
        },
        "servers": [{"url": settings.SITE_URL}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {name: error for raw in (False, True) for name, error in _errors(raw).items()},
            "securitySchemes": _security_schemes(),
        },
    }


def overview() -> dict[str, str]:
    """What holds for all calls: texts by heading, in which `…` is code."""
    return OVERVIEW | {"Limits": OVERVIEW["Limits"].format(**settings.RATE_LIMITS)}


def routes() -> Iterator[Route]:
    """Those of the API, in the order of instagram/urls.py."""
    for pattern in get_resolver().url_patterns:
        if route := getattr(pattern.callback, "route", None):
            yield route


def catalogue() -> list[tuple[int, str, str]]:
    """The errors there are: (code, error_type, when it comes)."""
    of_services = [(error.code, error.error_type, inspect.getdoc(error)) for error in _kinds(ServiceError)]
    return sorted([*of_services, *DISPATCHERS_ERRORS])


def _kinds(error: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for kind in error.__subclasses__():
        yield kind
        yield from _kinds(kind)


def operation_of(route: Route, method: str, schemas: dict[str, Schema]) -> dict:
    scope, endpoint = route.endpoints[method]
    summary, _, more = (inspect.getdoc(endpoint) or endpoint.__name__.capitalize().replace("_", " ")).partition("\n\n")
    properties, required = _parameters(route, endpoint, schemas)
    in_path = {name: schema for name, schema in properties.items() if f"{{{name}}}" in route.path}
    others = {name: schema for name, schema in properties.items() if name not in in_path}
    operation = {
        "operationId": endpoint.__name__,
        "summary": summary.removesuffix("."),
        "tags": [_tag(route.path)],
        "parameters": [_parameter(name, schema, "path", True) for name, schema in in_path.items()],
        "responses": _responses(route, endpoint, scope, schemas, has_body=method != "GET"),
        "security": _security(endpoint, scope),
    }
    if more:
        operation["description"] = more
    # A DELETE's too, where OpenAPI would rather not have them: a password in the address ends up in logs.
    if method != "GET" and others:
        operation["requestBody"] = _body(others, [name for name in others if name in required], route.form is None)
    else:
        operation["parameters"] += [_parameter(name, one, "query", name in required) for name, one in others.items()]
    return operation


def _body(properties: dict[str, Schema], required: list[str], or_json: bool) -> dict:
    form = {name: _without_null(schema) for name, schema in properties.items()}
    ways = {"application/x-www-form-urlencoded": form} | ({"application/json": properties} if or_json else {})
    content = {way: {"schema": {"type": "object", "properties": ways[way], "required": required}} for way in ways}
    return {"required": bool(required), "content": content}


def _parameter(name: str, schema: Schema, where: str, required: bool) -> dict:
    schema = _without_null(schema)
    described = {"description": schema.pop("description")} if "description" in schema else {}
    return {"name": name, "in": where, "required": required, "schema": schema} | described


def _tag(path: str) -> str:
    parts = path.removeprefix("v1/").split("/")
    if RELATIONSHIPS.intersection(parts):
        return "relationships"
    return next((part for part in parts if part in ("comments", "likes")), parts[0])


def _parameters(route: Route, endpoint: Endpoint, schemas: dict[str, Schema]) -> tuple[dict[str, Schema], list[str]]:
    """The JSON schemas of an endpoint's parameters, and which of them have to be there."""
    form = _schema_of(route.form or model(endpoint), "validation", schemas)
    properties = {}
    for name, schema in form["properties"].items():
        known = {"description": MEANINGS[name]} if name in MEANINGS else {}
        default = schema.get("default")
        if default is None or (schema.get("type") == "string" and not isinstance(default, str)):
            schema.pop("default", None)  # an ID's is before or beyond all others: as if none were given
        properties[name] = known | schema
    if "{user_id}" in route.path:
        properties["user_id"] |= {"pattern": WRITTEN["pattern"].replace("^", "^(self|").replace("$", ")$")}
    return properties, form.get("required", [])


def _without_null(schema: Schema) -> Schema:
    """As it is in forms and queries, where what is not given is left out; JSON may have null for it."""
    schema = dict(schema)
    match schema.pop("anyOf", []):
        case [one, {"type": "null"}]:
            return one | schema
        case []:
            return schema
        case several:
            return {"anyOf": several} | schema


def _responses(route: Route, endpoint: Endpoint, scope: str, schemas: dict[str, Schema], *, has_body: bool) -> dict:
    """The responses by status. A 405 is not an answer of any operation, but of a path."""
    success = {
        "description": "Success",
        "content": {"application/json": {"schema": _success(route, endpoint, schemas)}},
        "headers": LIMIT_HEADERS,
    }
    has_viewer = "viewer" in parameters(endpoint)
    codes = {400, 429, 500, 503}
    codes |= {403} if has_viewer else set()
    codes |= {404} if "{" in route.path else set()
    codes |= {413} if has_body else set()
    codes |= {error.code for error in _kinds(ServiceError) if error.__module__ == endpoint.__module__}  # its very own
    prefix = "OAuth" if route.form else ""
    return {"200": success} | {str(code): {"$ref": f"#/components/responses/{prefix}{code}"} for code in sorted(codes)}


def _success(route: Route, endpoint: Endpoint, schemas: dict[str, Schema]) -> Schema:
    where = f"{endpoint.__module__}.{endpoint.__name__} (/{route.path})"
    returned = get_type_hints(endpoint, include_extras=True).get("return", Any)
    page = get_args(returned) if get_origin(returned) is tuple else ()
    if page and page[1:] != (Cursor,):
        raise Undescribed(f"{where}: a page is annotated with `-> tuple[list[…], Cursor]`, not {returned}")
    data_type = page[0] if page else returned
    if {dict, list, Any}.intersection([data_type, *get_args(data_type)]):
        raise Undescribed(f"{where}: annotate what it returns with a TypedDict, `-> Media` or `-> list[Media]`")
    data = _schema_of(data_type, "serialization", schemas)
    if not route.enveloped:
        return {"type": "object"} if data_type is type(None) else data
    properties = {"meta": _object({"code": {"const": 200}}), "data": data}
    if page:
        properties["pagination"] = _pagination(endpoint)
    return _object(properties)


def _pagination(endpoint: Endpoint) -> Schema:
    """All of it is optional: the last page has no next one. Parameters that turn pages have names of one form."""
    turning = [name for name in parameters(endpoint) if not name.endswith("_timestamp")]
    older = [name for name in turning if name == "cursor" or name.startswith("max_")]
    newer = [name for name in turning if name.startswith("min_")]
    names = [*newer, *(f"next_{name}" for name in older), "next_url"]
    return {"type": "object", "properties": {name: {"type": "string"} for name in names}}


def _schema_of(some_type: Any, mode: str, schemas: dict[str, Schema]) -> Schema:
    """The JSON schema of a type; the types inside that have a name are put into `schemas`."""
    schema = TypeAdapter(some_type).json_schema(mode=mode, ref_template=REF, schema_generator=_Generator)
    for name, part in schema.pop("$defs", {}).items():
        if schemas.setdefault(name, part) != part:
            raise Undescribed(f"two types are called {name}")
    if mode == "serialization" and schema.get("title"):
        if schemas.setdefault(schema["title"], schema) != schema:
            raise Undescribed(f"two types are called {schema['title']}")
        return {"$ref": REF.format(model=schema["title"])}
    return schema


class _Generator(GenerateJsonSchema):
    """Pydantic's, without a title for each field."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _object(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _errors(raw: bool) -> dict[str, dict]:
    """The error responses by name; those of OAuth's own answers have the fields of `meta` beside it, too."""
    errors: dict[int, dict[str, list[str]]] = {}
    for code, error_type, when in catalogue():
        errors.setdefault(code, {}).setdefault(error_type, []).append(when)
    responses = {}
    for code, by_type in errors.items():
        fields = {
            "code": {"const": code},
            "error_type": {"enum": list(by_type)},
            "error_message": {"type": "string"},
        }
        schema = _object({"meta": _object(fields)})
        if raw:
            schema["properties"] |= fields
        responses[f"{'OAuth' if raw else ''}{code}"] = {
            "description": "\n".join(f"- `{one}`: {' '.join(' '.join(when).split())}" for one, when in by_type.items()),
            "content": {"application/json": {"schema": schema}},
            "headers": LIMIT_HEADERS | (RETRY_HEADER if code in (429, 503) else {}),
        }
    return responses


def _security(endpoint: Endpoint, scope: str) -> list[dict[str, list[str]]]:
    viewer = parameters(endpoint).get("viewer")
    if viewer is None:
        return []
    ways = [{"oauth": [scope]}, {"access_token": [scope]}]
    return [*ways, {"client_id": []}] if viewer.annotation is Caller else ways


def _security_schemes() -> dict[str, dict]:
    scopes = settings.OAUTH2_PROVIDER["SCOPES"]
    authorize, token = f"{settings.SITE_URL}/oauth/authorize", f"{settings.SITE_URL}/oauth/access_token"
    return {
        "oauth": {
            "type": "oauth2",
            "description": "`Authorization: Bearer …`",
            "flows": {
                "authorizationCode": {"authorizationUrl": authorize, "tokenUrl": token, "scopes": scopes},
                "implicit": {"authorizationUrl": authorize, "scopes": scopes},
                "password": {"tokenUrl": token, "scopes": scopes},  # the phone app's
            },
        },
        "access_token": {
            "type": "apiKey",
            "in": "query",
            "name": "access_token",
            "description": "The same token, as a parameter",
        },
        "client_id": {
            "type": "apiKey",
            "in": "query",
            "name": "client_id",
            "description": "An app's ID, which sees what is public",
        },
    }
