"""A local stack that a bench has to itself: made from nothing, filled as it likes, and removed."""

import os
import subprocess
import sys

from django.conf import settings

from deploy.local.layout import Stack

NAME = "bench"
STACK = [sys.executable, str(settings.BASE_DIR / "deploy/local/stack.py")]


def is_here() -> bool:
    """Whether this process has that stack's settings."""
    return os.environ.get("STACK") == NAME


def run_in_it(arguments: list[str]) -> int:
    """Runs `manage.py` with these arguments in that stack; returns its exit code."""
    subprocess.run([*STACK, "clean", NAME], check=True)
    try:
        subprocess.run([*STACK, "up", NAME], check=True)
        stack = Stack(NAME)
        stack.load_secrets()
        # Its settings, too: whoever calls us may have those of another stack in the environment, which would win.
        environment = os.environ | stack.environment()
        return subprocess.run([sys.executable, settings.BASE_DIR / "manage.py", *arguments], env=environment).returncode
    finally:
        subprocess.run([*STACK, "clean", NAME], check=True)
