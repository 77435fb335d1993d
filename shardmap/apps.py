from django.apps import AppConfig


class ShardmapConfig(AppConfig):
    name = "shardmap"
