"""The service that talks to APNs, Apple's push notification service; and `client`, by which the workers reach it.

pyapns, which carried Instagram's pushes in 2011, is Python 2 and spoke a protocol that Apple has closed. This keeps its
contract (XML-RPC with `provision`, `notify` and `feedback`) over today's APNs: HTTP/2, tokens or certificates. See
docs/push.md.
"""
