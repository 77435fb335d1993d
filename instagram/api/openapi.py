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
from instagram.api.dispatch import Endpoint, Route, method_not_allowed, model, parameters
from instagram.api.words import MEANINGS, OVERVIEW

RELATIONSHIPS = {"follows", "followed-by", "requested-by", "relationship"}
REF = "#/components/schemas/{model}"

# Beside the errors of services: those that the dispatcher and nginx make.
DISPATCHERS_ERRORS = (
    (404, "APINotFoundError", "There is no such path."),
    (405, "APIInvalidParametersError", "The path does not take this method; the header `Allow` names those it takes."),
    (413, "APIInvalidParametersError", "The body is larger than 1 MB."),
    (
        500,
        "APIError",
        "An error of ours, of which we have been told. The message has its ID, as has the header `X-Request-ID`.",
    ),
    (503, "APIError", "A server of ours is away; the same request may work in a moment. As with 500, there is an ID."),
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
    form = {_in_form(name, schema): _without_null(schema) for name, schema in properties.items()}
    ways = {"application/x-www-form-urlencoded": (form, [_in_form(name, properties[name]) for name in required])}
    if or_json:
        ways["application/json"] = (properties, required)
    schemas = {way: {"type": "object", "properties": has, "required": needs} for way, (has, needs) in ways.items()}
    return {"required": bool(required), "content": {way: {"schema": schema} for way, schema in schemas.items()}}


def _in_form(name: str, schema: Schema) -> str:
    """A parameter's name in a form, where those of lists have a []."""
    return f"{name}[]" if _without_null(schema).get("type") == "array" else name


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
