"""What `fab -l` lists: deploys and all that is done to hosts (docs/deploying.md). The tasks live under deploy/."""

from fabric.main import program

from deploy.backups import backup, backups, remove_copies, restore
from deploy.databases import failover, rejoin, sync
from deploy.provision import provision
from deploy.releases import deploy, rollback, status, unlock
from deploy.rotation import maintenance
from deploy.running import TheRestIsACommand, run

program.executor_class = TheRestIsACommand

__all__ = [
    "backup",
    "backups",
    "deploy",
    "failover",
    "maintenance",
    "provision",
    "rejoin",
    "remove_copies",
    "restore",
    "rollback",
    "run",
    "status",
    "sync",
    "unlock",
]
