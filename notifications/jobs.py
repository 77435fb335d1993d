"""What follows from new photos, and from deleted accounts."""

from notifications import push, updates
from workers.registry import job

job("notifications.published")(updates.published)
job("notifications.placed")(updates.placed)
job("notifications.tagged")(updates.tagged)
job("notifications.deliver")(updates.deliver)
job("notifications.erase")(push.erase)
