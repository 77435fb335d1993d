"""What gunicorn runs."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "instagram.settings")
django = get_wsgi_application()


def application(environ, start_response):
    """Django, and then the rest of a body that nobody has read.

    Of that, gunicorn throws 64 kB away, and at more it closes the connection, which it has just promised to keep: the
    next request that nginx sends over it, whosever it is, would be a 503.
    """
    response = django(environ, start_response)
    while environ["wsgi.input"].read(1 << 16):
        pass
    return response
