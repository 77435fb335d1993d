"""What the machine must have before a stack can run: Debian's servers, and the virtual environment."""

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.local.layout import AS_ROOT, LOCAL, ROOT, VENV, Failed

# Debian keeps servers in /usr/sbin, which an ordinary user's PATH lacks.
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"])

OLDEST_POSTGRES = 15  # unlogged sequences, publications of a schema

# Program → Debian's package. Postgres is looked for on its own, see `postgres_bin`.
PACKAGES = {
    "pgbouncer": "pgbouncer",
    "redis-server": "redis-server",
    "memcached": "memcached",
    "gearmand": "gearman-job-server",
    "nginx": "nginx",
    "haproxy": "haproxy",
    "pgbackrest": "pgbackrest",
    "munin-node": "munin-node",
    "munin-cron": "munin",
}

# What only the tests need.
TEST_PACKAGES = {  # those with the mark "slow"
    "sshd": "openssh-server",
    "systemd-analyze": "systemd",  # a container has none
    # A bare Debian host, for `fab provision` (tests/deploy/bare_host.py).
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
}

# Installs the packages in $@ without letting Debian start the new servers on their default ports, now or at the next
# boot: we start our own. A guard that a power cut left behind is known by its mark.
INSTALL = r"""
set -eu
guard=/usr/sbin/policy-rc.d
mark='# instagram local stack'
if [ ! -e $guard ] || grep -q "$mark" $guard; then
    trap 'rm -f $guard' EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\n%s\nexit 101\n' "$mark" > $guard
    chmod 755 $guard
fi
export DEBIAN_FRONTEND=noninteractive
units() { ls /lib/systemd/system 2>/dev/null | grep '\.service$' || true; }
install() { apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "$@"; }
before=$(units)
apt-get -s install --no-install-recommends "$@" >/dev/null 2>&1 || apt-get update
install "$@" || { apt-get update && install "$@"; }
if command -v systemctl >/dev/null; then
    for unit in $(units); do
        echo "$before" | grep -qxF "$unit" || systemctl disable --quiet "$unit" || true
    done
fi
"""


@contextmanager
def step(text: str) -> Iterator[None]:
    """Says what is being done, then how long it took."""
    print(f"  {text} …", end="", flush=True)
    start = time.monotonic()
    try:
        yield
    except BaseException:
        print(" failed" if sys.exc_info()[0] is not KeyboardInterrupt else " stopped", flush=True)
        raise
    print(f" {time.monotonic() - start:.1f} s", flush=True)


def which(program: str) -> str | None:
    return shutil.which(program, path=PATH)


def logged(command: list[str], log: Path, advice: str, **options) -> None:
    """Runs a long command with its output in a log file and a dot every few seconds on the screen.

    Raises Failed with the log's end and the advice.
    """
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **options)
        try:
            while True:
                try:
                    code = process.wait(timeout=3)
                    break
                except subprocess.TimeoutExpired:
                    print(".", end="", flush=True)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if code:
        raise Failed(f"{advice}\n{last_lines(log)}")


def last_lines(log: Path, lines: int = 15) -> str:
    """The end of a log, indented, below its path."""
    text = log.read_text(errors="replace") if log.exists() else ""
    end = "\n".join(f"    {line}" for line in text.rstrip().splitlines()[-lines:])
    return f"The end of {log}:\n{end or '    (empty)'}"


def postgres_bin() -> Path | None:
    """The directory of the newest Postgres' programs; Debian puts none of the servers on the PATH."""
    found = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()]
    if on_path := which("initdb"):
        found.append(Path(on_path).resolve().parent)

    def version(path: Path) -> int:
        answer = subprocess.run([path / "postgres", "--version"], capture_output=True, text=True)
        match = re.search(r"(\d+)", answer.stdout)
        return int(match[1]) if match else 0

    newest = max(found, key=version, default=None)
    return newest if newest and version(newest) >= OLDEST_POSTGRES else None


def missing_packages(programs: dict[str, str]) -> list[str]:
    missing = [package for program, package in programs.items() if not which(program)]
    if not postgres_bin():
        missing.insert(0, "postgresql")
    if not (VENV / "bin/python").exists() and not importlib.util.find_spec("ensurepip"):
        missing.append(f"python3.{sys.version_info[1]}-venv")
    return missing


def install_packages(programs: dict[str, str] = PACKAGES) -> None:
    """Installs the Debian packages that are missing, all at once. Raises Failed where that cannot be done."""
    missing = missing_packages(programs)
    if not missing:
        return
    names = " ".join(missing)
    if not which("apt-get"):
        raise Failed(f"These are missing, and there is no apt here to install them: {names}\n"
                     "(Debian's names.) Install them with your system's package manager, then try again.")  # fmt: skip
    command = ["sh", "-c", INSTALL, "install", *missing]
    if not AS_ROOT:
        if not which("sudo"):
            raise Failed(f"These Debian packages are missing: {names}\nAs root, run: apt-get install {names}")
        print(f"  sudo is needed to install {names}")
        if subprocess.run(["sudo", "-v"]).returncode:
            raise Failed(f"sudo said no. Have these Debian packages installed, then try again: {names}")
        command = ["sudo", *command]
    with step(f"installing Debian packages: {names}"):
        logged(command, LOCAL / "apt.log", f"apt-get could not install {names}.")
    if missing := missing_packages(programs):
        raise Failed(f"apt-get installed them, yet these are not found: {' '.join(missing)}")


def prepare_venv(venv: Path, *files: Path) -> None:
    """Makes a virtual environment agree with these lists of requirements; does nothing if it does already."""
    # A virtual environment holds absolute paths and belongs to one Python: it survives neither's change.
    home = f"{ROOT} {sys.version_info[:2]} {os.path.realpath(sys.executable)}\n"
    wanted = home + hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    mark = venv / "installed"
    with open(LOCAL / "venv.lock", "w") as lock:
        # Two stacks may come up at once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = mark.read_text() if mark.exists() else ""
        if found == wanted:
            return
        log = LOCAL / "pip.log"
        if not found.startswith(home):
            with step(f"making {venv.name}"):
                logged([sys.executable, "-m", "venv", "--clear", str(venv)], log, f"{venv} could not be made.")
        with step(f"installing Python packages into {venv.name}"):
            pip = [
                str(venv / "bin/python"),
                "-m",
                "pip",
                "install",
                "--disable-pip-version-check",
                "--progress-bar=off",
                "--no-deps",  # all are in the lists: nothing to find out, and nothing comes that is not there
                "--no-compile",  # Python does that with what is used, which is less than half
            ]
            for file in files:
                pip += ["-r", str(file)]
            logged(pip, log, "pip could not install the Python packages. Does this machine reach its package index? "
                             "pip uses your own configuration: see `pip config list`.")  # fmt: skip
        mark.write_text(wanted)
