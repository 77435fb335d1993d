"""Bugsink's server; and before it starts, its tables, somebody who logs in, and the DSN's project."""

bind = "{{ address }}"
wsgi_app = "bugsink.wsgi:application"
pythonpath = "{{ conf }}"  # of bugsink_conf

# SQLite has one writer; the threads are for people who look at pages meanwhile.
workers = 1
threads = 4
# The master prepares it all, and shares its memory with the worker.
preload_app = True
control_socket_disable = True


def on_starting(server) -> None:
    from django.core.management import call_command
    from django.db import connection, connections
    from phonehome.models import Installation
    from projects.models import Project
    from teams.models import Team
    from users.models import User

    connection.cursor().execute("PRAGMA journal_mode = WAL")  # who reads does not wait for who writes
    call_command("migrate", run_syncdb=True, verbosity=0)
    Installation.objects.get_or_create()
    if not User.objects.exists():
        User.objects.create_superuser("{{ login }}", "{{ login }}", "{{ password }}")
    team, _ = Team.objects.get_or_create(name="Instagram")
    Project.objects.get_or_create(id=1, defaults={"name": "backend", "team": team, "sentry_key": "{{ key }}"})
    connections.close_all()  # none of SQLite's may cross a fork
