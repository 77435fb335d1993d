from django.db.models import Count, Exists, Model, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce
from django.urls import path
from rest_framework import generics, pagination, serializers

from bench.sql_join.models import Block, Comment, Like, Photo

RENDITIONS = {"thumbnail": 150, "low_resolution": 306, "standard_resolution": 612}


class UserSerializer(serializers.Serializer):
    id = serializers.CharField()
    username = serializers.CharField()
    full_name = serializers.CharField(source="profile.full_name")
    profile_picture = serializers.CharField(source="profile.picture")


class CommentSerializer(serializers.ModelSerializer):
    user = UserSerializer()

    class Meta:
        model = Comment
        fields = ["id", "text", "created_at", "user"]


class PhotoSerializer(serializers.ModelSerializer):
    user = UserSerializer(source="owner")
    images = serializers.SerializerMethodField()
    like_count = serializers.IntegerField()
    comment_count = serializers.IntegerField()
    user_has_liked = serializers.BooleanField()
    likes = serializers.SerializerMethodField()
    comments = serializers.SerializerMethodField()

    class Meta:
        model = Photo
        fields = [
            *("id", "user", "images", "caption", "filter", "created_at"),
            *("like_count", "comment_count", "user_has_liked", "likes", "comments"),
        ]

    def get_images(self, photo: Photo) -> dict:
        return {
            name: {"url": f"http://127.0.0.1/photos/{photo.upload_id}_{pixels}.jpg", "width": pixels, "height": pixels}
            for name, pixels in RENDITIONS.items()
        }

    def get_likes(self, photo: Photo) -> list:
        latest = sorted(photo.likes.all(), key=lambda like: -like.id)[:4]
        return UserSerializer([like.user for like in latest], many=True).data

    def get_comments(self, photo: Photo) -> list:
        return CommentSerializer(sorted(photo.comments.all(), key=lambda comment: comment.id)[-8:], many=True).data


def _number_of(rows: type[Model]) -> Coalesce:
    of_photo = rows.objects.filter(photo=OuterRef("pk")).order_by().values("photo")
    return Coalesce(Subquery(of_photo.annotate(number=Count("*")).values("number")), 0)


class LatestFirst(pagination.CursorPagination):
    ordering = "-created_at"
    page_size = 20


class Feed(generics.ListAPIView):
    serializer_class = PhotoSerializer
    pagination_class = LatestFirst

    def get_queryset(self):
        viewer = self.request.user
        blocks = Block.objects.filter(
            Q(blocker=viewer, blocked=OuterRef("owner")) | Q(blocked=viewer, blocker=OuterRef("owner"))
        )
        return (
            Photo.objects.filter(owner__in=[viewer.id, *viewer.follows.values_list("followee", flat=True)])
            .exclude(Exists(blocks))
            .annotate(
                # Not two joined COUNT(DISTINCT …), which would count for each candidate, not only for those shown.
                like_count=_number_of(Like),
                comment_count=_number_of(Comment),
                user_has_liked=Exists(Like.objects.filter(photo=OuterRef("pk"), user=viewer)),
            )
            .select_related("owner__profile")
            .prefetch_related("likes__user__profile", "comments__user__profile")
        )


urlpatterns = [path("feed", Feed.as_view())]
