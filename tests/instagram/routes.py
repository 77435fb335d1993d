"""The table of routes, for tests that must leave none of them out."""

import re

from django.test import Client
from django.urls import get_resolver

# How dispatch.route, dispatch.raw and accounts.web.page end their patterns.
END = re.compile(r"(\(\?:\\\.json\)\?)?/\?\$$")


def paths() -> list[str]:
    """Every path that is served, as instagram/urls.py has it: "v1/users/{user_id}/follows"."""
    found = []
    for pattern in get_resolver().url_patterns:
        text = END.sub("", str(pattern.pattern)).removeprefix("^")
        found.append(re.sub(r"\(\?P<(\w+)>[^)]*\)", r"{\1}", text).replace("\\", ""))
    return found


def filled(path: str, **values) -> str:
    """A path to ask for: its parameters are 1 unless they are given."""
    return "/" + re.sub(r"{(\w+)}", lambda match: str(values.get(match[1], 1)), path)


def methods(path: str) -> set[str]:
    """What a path answers to; the pages for people take whatever comes, and count as GET."""
    response = Client().generic("PROPFIND", filled(path))
    return set(response["Allow"].split(", ")) if response.status_code == 405 else {"GET"}
