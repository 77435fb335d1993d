"""The table of routes, for tests that must leave none of them out."""

import re

from django.urls import get_resolver

from instagram.api.dispatch import Route


def routes() -> list[Route]:
    """Every route of the API."""
    views = [pattern.callback for pattern in get_resolver().url_patterns]
    return [view.route for view in views if hasattr(view, "route")]


def filled(path: str, **values) -> str:
    """A path to ask for: its parameters are 1 unless they are given."""
    return "/" + re.sub(r"{(\w+)}", lambda match: str(values.get(match[1], 1)), path)
