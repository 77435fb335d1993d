"""What keeps the feeds up to date."""

from feeds import popular, services
from workers.registry import job

job("feeds.fan_out")(services.fan_out)
job("feeds.push_chunk")(services.push_chunk)
job("feeds.remove_photo")(services.remove_photo)
job("feeds.remove_chunk")(services.remove_chunk)
job("feeds.liked")(popular.liked)
job("feeds.follow_changed")(services.follow_changed)
