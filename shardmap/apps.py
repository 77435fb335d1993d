from django.apps import AppConfig
from django.core.signals import request_finished, request_started


class ShardmapConfig(AppConfig):
    name = "shardmap"

    def ready(self) -> None:
        from shardmap import cache

        request_started.connect(cache.begin_request)
        request_finished.connect(cache.end_request)
