"""What follows from publishing and deleting photos."""

from photos import likes, places, services, tags
from workers.registry import job

job("photos.process")(services.process)
job("photos.bury")(services.bury)
job("photos.mirror_like")(likes.mirror_like)
job("photos.tag")(tags.retag)
job("photos.place")(places.place)
