"""What follows from changes to accounts and to the follow graph."""

from accounts import graph
from shardmap import cache
from workers.registry import job

job("accounts.mirror_follow")(graph.mirror)
job("accounts.sever")(graph.sever)


@job("accounts.forget")
def forget(keys: list[str]) -> None:
    cache.forget_surely(*keys)
