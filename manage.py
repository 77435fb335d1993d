#!/usr/bin/env python
"""Django's command line: `manage.py help` lists what there is."""

import os
import sys

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "instagram.settings")
    from django.apps import apps
    from django.core.management import execute_from_command_line

    try:
        execute_from_command_line(sys.argv)
    except Exception as error:
        if apps.ready:
            from workers import sentry

            sentry.start(sys.argv[1])
            sentry.capture(error)
            sentry.flush()
        raise
