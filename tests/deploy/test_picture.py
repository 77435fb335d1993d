"""The picture in the README is what its code draws."""

import subprocess
import sys
from xml.etree import ElementTree

from django.conf import settings

DOCS = settings.BASE_DIR / "docs"


def test_the_picture_is_what_its_code_draws():
    drawn = subprocess.run([sys.executable, DOCS / "architecture.py"], capture_output=True, check=True, timeout=30)
    assert drawn.stdout == (DOCS / "images/architecture.svg").read_bytes()
    ElementTree.fromstring(drawn.stdout)  # noqa: S314 (our own)
