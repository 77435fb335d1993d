from django.apps import AppConfig


class PhotosConfig(AppConfig):
    name = "photos"

    def ready(self) -> None:
        from photos.services import owners_in_shard
        from shardmap import photo_map

        photo_map.use_source(owners_in_shard)
