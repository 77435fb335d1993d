"""What follows from publishing and deleting photos."""

from photos import services
from workers.registry import job

job("photos.process")(services.process)
job("photos.bury")(services.bury)
