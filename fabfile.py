"""What `fab -l` lists: deploys and all that is done to hosts (docs/deploying.md). The tasks live under deploy/."""

from fabric.main import program

from deploy.releases import deploy, rollback, status, unlock
from deploy.running import TheRestIsACommand, run

program.executor_class = TheRestIsACommand

__all__ = ["deploy", "rollback", "run", "status", "unlock"]
