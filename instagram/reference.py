"""`/developer/`: the API's reference for people, made of its description (instagram/api/openapi.py).

Each operation has a form that tries it out. The token for that is pasted, or comes from an app of the developer's own
by the implicit flow, after the question that everybody is asked; this page gets none for being logged in. It stays in
the page, whose script is ours and may talk to nobody else.
"""

import re
from functools import cache
from urllib.parse import urlencode

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.template.loader import render_to_string
from django.utils.html import escape, format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from accounts import oauth
from accounts.web import content_security_policy
from instagram.api import openapi
from instagram.api.openapi import Schema
from shardmap.ids import MAX_ID

HERE = "/developer/"
STYLE, SCRIPT = "instagram/reference.css", "instagram/reference.js"
CODE = re.compile(r"`([^`]+)`")
PLACEHOLDER = re.compile(r"\{(\w+)\}")


def reference(request: HttpRequest) -> HttpResponse:
    """The page."""
    response = render(
        request, "instagram/reference.html", {"main": _main(), "tokens": _tokens(request), "here": _here()}
    )
    response["Content-Security-Policy"] = content_security_policy(style=STYLE, script=SCRIPT)
    return response


def _here() -> str:
    return settings.SITE_URL + HERE


def _tokens(request: HttpRequest) -> list[dict[str, str]]:
    """Where a developer gets a token for this page: {name, url} of each app that may send one here."""
    if not request.user.is_authenticated:
        return []
    asked = {"response_type": "token", "redirect_uri": _here(), "scope": " ".join(settings.OAUTH2_PROVIDER["SCOPES"])}
    return [
        {"name": client.name, "url": f"/oauth/authorize?{urlencode(asked | {'client_id': client.client_id})}"}
        for client in oauth.implicit_clients(request.user, _here())
    ]


@cache
def _main() -> str:
    """What is the same for all: most of the page."""
    description = openapi.description()
    tags: dict[str, list[dict]] = {}
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            tags.setdefault(operation["tags"][0], []).append(shown(method.upper(), path, operation))
    context = {
        "overview": {heading: with_code(text) for heading, text in openapi.overview().items()},
        "errors": [(code, error_type, with_code(when)) for code, error_type, when in openapi.catalogue()],
        "tags": dict(sorted(tags.items())),
        "objects": [_object(name, schema) for name, schema in sorted(description["components"]["schemas"].items())],
        "example": f"curl '{settings.SITE_URL}/v1/users/self' -H \"Authorization: Bearer $TOKEN\"",
    }
    return render_to_string("instagram/reference_main.html", context)


def with_code(text: str) -> SafeString:
    """Text as HTML, in which `…` is code."""
    return mark_safe(CODE.sub(r"<code>\1</code>", escape(text)))  # noqa: S308 (escaped just here)


def shown(method: str, path: str, operation: dict) -> dict:
    """What the template needs of an operation."""
    parameters = [
        _parameter(one["name"], one["schema"] | {"description": one.get("description", "")}, one["required"])
        for one in operation["parameters"]
    ]
    for content in list(operation.get("requestBody", {"content": {}})["content"].values())[:1]:
        form = content["schema"]
        parameters += [_parameter(name, one, name in form["required"]) for name, one in form["properties"].items()]
    return {
        "id": operation["operationId"],
        "method": method,
        "path": path,
        "summary": with_code(operation["summary"]),
        "description": with_code(operation.get("description", "")),
        "needs": _needs(operation["security"]),
        "takes_token": bool(operation["security"]),
        "parameters": parameters,
        "answer": _answer(operation["responses"]["200"]["content"]["application/json"]["schema"]),
        "curl": _curl(method, path, parameters, operation["security"]),
    }


def _needs(security: list[dict[str, list[str]]]) -> str:
    scopes = [scopes[0] for way in security for name, scopes in way.items() if name == "oauth"]
    if not scopes:
        return "no token"
    or_client = ", or a client_id" if {"client_id": []} in security else ""
    return format_html("a token with the scope <code>{}</code>{}", scopes[0], or_client)


def _parameter(name: str, schema: Schema, required: bool) -> dict:
    return {
        "name": name,
        "required": required,
        "type": _type(schema),
        "default": schema.get("default", ""),
        "choices": ["true", "false"] if schema.get("type") == "boolean" else _choices(schema),
        "secret": "password" in name or "secret" in name,
        "description": with_code(schema.get("description", "")),
    }


def _choices(schema: Schema) -> list[str]:
    """The values there are; of a list, those of its items."""
    return schema.get("items", schema).get("enum", [])


def _answer(schema: Schema) -> str:
    """The type of `data`, or of what OAuth's own answers are; and what `pagination` has."""
    properties = schema.get("properties", {})
    if "data" not in properties:
        return _type(schema)
    pagination = properties.get("pagination", {}).get("properties", {})
    if not pagination:
        return _type(properties["data"])
    return format_html("{}; pagination: {}", _type(properties["data"]), ", ".join(pagination))


def _type(schema: Schema) -> str:
    """A JSON schema in a few words, with links to the objects."""
    match schema:
        case {"$ref": ref}:
            name = ref.rsplit("/", 1)[1]
            return format_html('<a href="#{0}">{0}</a>', name)
        case {"anyOf": several}:
            return format_html_join(" or ", "{}", [(_type(one),) for one in several])
        case {"enum": values}:
            return format_html_join(" or ", "<code>{}</code>", [(value,) for value in values])
        case {"const": value}:
            return format_html("<code>{}</code>", value)
        case {"type": "array", "items": {} as items}:
            return format_html("list of {}", _type(items)) if items else "list"
        case {"minimum": least, "maximum": most, "type": kind} if most < MAX_ID:
            return format_html("{}, {} to {}", kind, least, most)
        case {"maxLength": most}:
            return format_html("string, up to {} characters", most)
    return format_html("{}", schema.get("type", "anything"))


def _object(name: str, schema: Schema) -> dict:
    fields = [
        {"name": field, "type": _type(one), "description": with_code(one.get("description", ""))}
        for field, one in schema["properties"].items()
    ]
    return {"name": name, "description": with_code(schema.get("description", "")), "fields": fields}


def _curl(method: str, path: str, parameters: list[dict], security: list[dict]) -> str:
    """A command that makes the call; what is to be put into it is in capitals."""
    url = settings.SITE_URL + PLACEHOLDER.sub(lambda found: found[1].upper(), path)
    given = [
        f"{one['name']}={next(iter(one['choices']), one['name'].upper())}"
        for one in parameters
        if one["required"] and f"{{{one['name']}}}" not in path
    ]
    query = f"?{'&'.join(given)}" if method == "GET" and given else ""
    parts = [f"curl {'' if method == 'GET' else f'-X {method} '}'{url}{query}'"]
    if security:
        parts.append('-H "Authorization: Bearer $TOKEN"')
    if method != "GET":
        parts += [f"-d {one}" for one in given]
    return " \\\n  ".join(parts)
