"""What the programs keep, in `.local/<stack>/data/`: empty directories, new Postgres clusters, and replicas of them."""

import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.local import machine
from deploy.local.layout import Failed, Stack, make_dir, write
from deploy.local.machine import step
from deploy.local.ports import HOST
from deploy.local.programs import Program, replicas_of
from deploy.local.supervision import Supervisor

SLOT = "FROM pg_replication_slots WHERE slot_name = 'replica'"


def prepare_data(stack: Stack, program: Program) -> None:
    """The directory of what a program keeps; for Postgres, a new cluster."""
    if stack.data(program.name).exists():
        return
    with draft_of_data(stack, program) as draft:
        if program.name.startswith("postgres"):
            password = stack.conf / "initdb.password"
            write(password, stack.secrets["postgres_password"], program.user)
            with step(f"creating {program.name}"):
                machine.logged(
                    [
                        str(machine.postgres_bin() / "initdb"),
                        *("-D", str(draft), "--username=postgres", f"--pwfile={password}"),
                        *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8"),
                    ],
                    stack.logs / f"{program.name}.initdb.log",
                    "initdb failed.",
                    cwd=draft.parent,
                    **as_user(program.user),
                )
            password.unlink()


@contextmanager
def draft_of_data(stack: Stack, program: Program) -> Iterator[Path]:
    """A directory that becomes the program's data when it is filled: what is half made is not taken for that."""
    data = stack.data(program.name)
    make_dir(data.parent)
    draft = data.with_suffix(".new")
    shutil.rmtree(draft, ignore_errors=True)
    make_dir(draft, program.user, 0o700)
    yield draft
    draft.rename(data)


def as_user(user: str | None) -> dict:
    """How subprocess runs something as another user, if it has to."""
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}


def prepare_replicas(stack: Stack, supervisor: Supervisor, replicas: list[Program]) -> None:
    """Makes the replicas that are wanted and lacking, or cannot follow any more, and removes the others.

    On its primary, each has a slot, which keeps the WAL that the replica still needs: none must outlive its replica.
    """
    wanted = {replica.name: replica for replica in replicas}
    for name, primary in replicas_of(stack).items():
        status_of_slot = on_primary(stack, primary, f"SELECT wal_status {SLOT}")
        if name in wanted and stack.data(name).exists() and status_of_slot not in ("", "lost"):
            continue
        if name in wanted:
            supervisor.stop_programs([name])
        shutil.rmtree(stack.data(name), ignore_errors=True)
        on_primary(stack, primary, f"SELECT pg_drop_replication_slot(slot_name) {SLOT}")
        if name in wanted:
            copy_primary(stack, wanted[name])


def copy_primary(stack: Stack, replica: Program) -> None:
    with step(f"creating {replica.name}"), draft_of_data(stack, replica) as draft:
        machine.logged(
            [
                str(machine.postgres_bin() / "pg_basebackup"),
                *("-d", f"host={HOST} port={stack.ports[replica.primary]} user=replicator application_name=copy"),
                *("-D", str(draft)),
                # It will follow as the one who has made the copy, by a slot that exists since the copy began.
                *("--write-recovery-conf", "--create-slot", "--slot=replica", "--checkpoint=fast"),
            ],
            stack.logs / f"{replica.name}.basebackup.log",
            f"{replica.primary} could not be copied.",
            cwd=draft.parent,
            env={"PGPASSWORD": stack.secrets["replicator_password"]},
            **as_user(replica.user),
        )
        # Under another name while it copies: a COMMIT must not take that for the replica that it waits for.
        settings = draft / "postgresql.auto.conf"
        settings.write_text(settings.read_text().replace("application_name=copy", "application_name=replica"))


def on_primary(stack: Stack, primary: str, sql: str) -> str:
    """What a statement of the superuser answers. Raises Failed."""
    psql, port = machine.postgres_bin() / "psql", str(stack.ports[primary])
    done = subprocess.run(
        [psql, "-XAtq", "-h", HOST, "-p", port, "-U", "postgres", "-c", sql],
        env={"PGPASSWORD": stack.secrets["postgres_password"], "PGCONNECT_TIMEOUT": "5"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    if done.returncode:
        raise Failed(f"{primary}: {done.stderr}")
    return done.stdout.strip()
