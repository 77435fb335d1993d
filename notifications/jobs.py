"""What follows from new photos."""

from notifications import updates
from workers.registry import job

job("notifications.published")(updates.published)
job("notifications.placed")(updates.placed)
job("notifications.tagged")(updates.tagged)
job("notifications.deliver")(updates.deliver)
