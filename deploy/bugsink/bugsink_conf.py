# Bugsink, which takes what the Sentry SDK sends. Rendered by the local stack alone: production's DSN is Sentry's.
from bugsink.settings.default import *  # noqa: F403
from bugsink.settings.default import DATABASES, INSTALLED_APPS
from bugsink.version import __version__

SECRET_KEY = "{{ secret_key }}"
TIME_ZONE = "UTC"

# The tables are made from the models, since the hundred migrations take ten seconds; so a new version begins anew.
MIGRATION_MODULES = {app.rpartition(".")[2]: None for app in INSTALLED_APPS}
DATABASES["default"]["NAME"] = f"{{ data }}/{__version__}.sqlite3"
DATABASES["snappea"]["NAME"] = "{{ data }}/snappea.sqlite3"

# An event is stored before the SDK gets its answer: no second process, and no queue to be looked after.
SNAPPEA = {"TASK_ALWAYS_EAGER": True}

# Whom it would write to sits at this machine.
EMAIL_BACKEND = "django.core.mail.backends.dummy.EmailBackend"

BUGSINK = {
    "BASE_URL": "http://{{ address }}",
    "SINGLE_USER": True,  # which its licence allows everybody
    "PHONEHOME": False,  # nothing here speaks with the world
    "INGEST_STORE_BASE_DIR": "{{ data }}/ingestion",
    # The tests break whole servers, and each request that fails by that is an event.
    "MAX_EVENTS_PER_PROJECT_PER_5_MINUTES": 100_000,
    "MAX_EVENTS_PER_PROJECT_PER_HOUR": 100_000,
    "MAX_EVENTS_PER_5_MINUTES": 100_000,
    "MAX_EVENTS_PER_HOUR": 100_000,
}
