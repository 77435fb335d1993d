"""What follows from changes to accounts and to the follow graph."""

from accounts import graph
from shardmap import cache
from workers.registry import job

job("accounts.mirror_follow")(graph.mirror_follow)
job("accounts.mirror_block")(graph.mirror_block)
job("accounts.approve_all")(graph.approve_all)


@job("accounts.forget")
def forget(keys: list[str]) -> None:
    cache.forget_surely(*keys)
