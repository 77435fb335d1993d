from django.conf import settings
from django.db import models


class Profile(models.Model):
    user = models.OneToOneField(settings.AUTH_USER_MODEL, models.CASCADE, primary_key=True)
    full_name = models.CharField(max_length=64)
    picture = models.CharField(max_length=200)
    is_private = models.BooleanField(default=False)


class Follow(models.Model):
    follower = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="follows")
    followee = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="followers")

    class Meta:
        unique_together = [("follower", "followee")]


class Block(models.Model):
    blocker = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="blocks")
    blocked = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="blocked_by")

    class Meta:
        unique_together = [("blocker", "blocked")]


class Photo(models.Model):
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="photos")
    upload_id = models.CharField(max_length=32)
    caption = models.CharField(max_length=2200)
    filter = models.CharField(max_length=30)
    created_at = models.DateTimeField(db_index=True)


class Like(models.Model):
    photo = models.ForeignKey(Photo, models.CASCADE, related_name="likes")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE)

    class Meta:
        unique_together = [("photo", "user")]


class Comment(models.Model):
    photo = models.ForeignKey(Photo, models.CASCADE, related_name="comments")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE)
    text = models.CharField(max_length=300)
    created_at = models.DateTimeField()
