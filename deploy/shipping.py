"""From a commit to a release on the hosts: code as one archive, dependencies as wheels, each made once for all."""

import compileall
import datetime
import hashlib
import os
import py_compile
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from invoke import Exit

from deploy.hosts import Host, each

ROOT = Path(__file__).resolve().parents[1]
WHEELS = Path.home() / ".cache/instagram-wheels"  # so that a deploy that is tried again does not collect them again
SECONDS = 600


@dataclass
class Build:
    name: str  # <time>-<commit>: sorts by time
    archive: Path
    tree: Path  # the same, unpacked
    requirements: str  # a hash: hosts keep dependencies under it


def build(commit: str, directory: Path, name: str = "") -> Build:
    """The commit's code in an archive in that directory, compiled; of another release's name, if that is to be made
    again. Raises Exit when there is no such commit."""
    found = _git("rev-parse", "--verify", "--quiet", "--short=10", f"{commit}^{{commit}}")
    if not found:
        raise Exit(f"There is no commit {commit}.")
    name = name or f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}-{found}"
    tree = directory / "tree"
    tree.mkdir()
    # Without what no host runs.
    _git("archive", f"--output={directory}/code.tar", found, ":!tests", ":!docs")
    with tarfile.open(directory / "code.tar") as code:
        code.extractall(tree, filter="data")
    (tree / "RELEASE").write_text(name + "\n")
    # Compiled here, once, or each host does it at its first start. Python need not look whether the source has changed
    # since: in a release nothing does.
    compileall.compile_dir(tree, quiet=2, workers=0, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    with tarfile.open(directory / "release.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(tree, arcname=".", filter=_for_everybody)
    return Build(name, directory / "release.tar.gz", tree, requirements_of(tree))


def requirements_of(tree: Path) -> str:
    return hashlib.sha256((tree / "requirements.txt").read_bytes()).hexdigest()[:12]


def wheels(built: Build) -> Path:
    """An archive of all that requirements.txt names. Hosts run the same Debian as who deploys."""
    archive = WHEELS / f"{built.requirements}.tar"
    if not archive.exists():
        directory = WHEELS / built.requirements
        print("collecting dependencies …", flush=True)
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(directory)]
        done = subprocess.run(
            [*pip, "-r", str(built.tree / "requirements.txt")], capture_output=True, text=True, timeout=SECONDS
        )
        if done.returncode:
            raise Exit(f"pip could not collect the dependencies:\n{done.stderr}")
        draft = archive.with_suffix(".new")
        with tarfile.open(draft, "w") as tar:
            tar.add(directory, arcname=".")
        draft.replace(archive)
    return archive


def ship(host: Host, built: Build) -> None:
    """The code onto a host, beside the releases that are there."""
    name = built.name
    host.run(f"mkdir -p releases/.{name} {host.venvs}")
    host.put(built.archive, f"releases/.{name}.tar.gz")
    host.run(
        f"cd releases && tar xzf .{name}.tar.gz -C .{name} && rm .{name}.tar.gz"
        f" && ln -sfn {_venv(host, built)} .{name}/.venv && mv .{name} {name}"
    )
    host.say(f"has {name}")


def install(hosts: list[Host], built: Build) -> None:
    """The dependencies onto those hosts that lack them, beside those that are in use. Nothing is downloaded."""
    has = each(hosts, lambda host: host.run(f"test -e {_venv(host, built)}/installed && echo yes || echo no").strip())
    lacking = [host for host in hosts if has[host] == "no"]
    if not lacking:
        return
    archive = wheels(built)

    def work(host: Host) -> None:
        venv = _venv(host, built)
        host.put(archive, f"releases/.{built.requirements}.tar")
        # A virtual environment cannot be moved, so it is made in its place, and marked when it is complete.
        host.run(
            f"python3 -m venv --clear {venv} && mkdir {venv}/wheels"
            f" && tar xf releases/.{built.requirements}.tar -C {venv}/wheels && rm releases/.{built.requirements}.tar"
            f" && {venv}/bin/pip install --quiet --no-index --find-links={venv}/wheels"
            f" -r releases/{built.name}/requirements.txt && rm -r {venv}/wheels && touch {venv}/installed",
            SECONDS,
        )
        host.say(f"has the dependencies {built.requirements}")

    each(lacking, work)


def prune(host: Host, kept: list[str]) -> None:
    """Removes all releases but these and those in slots, and the dependencies that none of them has."""
    host.run(
        f"""kept=" {" ".join(kept)} $(for slot in slots/*; do basename $(readlink $slot || echo .); done | xargs) "
        for release in $(ls -A releases); do
            case "$kept" in *" $release "*) ;; *) rm -rf releases/$release ;; esac
        done
        for venv in {host.venvs}/*; do
            readlink -f releases/*/.venv | grep -qxF $(readlink -f $venv) || rm -rf $venv
        done"""
    )


def _for_everybody(file: tarfile.TarInfo) -> tarfile.TarInfo:
    """The app's user can read it, whatever the umask of who deploys."""
    file.mode |= 0o755 if file.isdir() else 0o644
    file.uid = file.gid = 0
    file.uname = file.gname = "root"
    return file


def _venv(host: Host, built: Build) -> str:
    return os.path.join(host.directory, host.venvs, built.requirements)


def _git(*arguments: str) -> str:
    """What git printed, or "" when it said no."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    return done.stdout.strip()
