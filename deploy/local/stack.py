#!/usr/bin/env python3
"""The local stack: every server of production, on this machine, under one supervisor (docs/local-stack.md).

This file is only the door: it must parse on any Python 3, so that an old one gets a sentence instead of a
SyntaxError. The commands are in `cli.py`.
"""

import os
import sys

OLDEST_PYTHON = (3, 11)


def main():
    if sys.version_info < OLDEST_PYTHON:
        found = "{}.{}.{} ({})".format(*(*sys.version_info[:3], sys.executable))
        sys.exit("Python 3.11 or newer is needed, found " + found + ". Name another one: make up PYTHON=python3.12")
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from deploy.local import cli

    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
