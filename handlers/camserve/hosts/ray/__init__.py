"""Ray Serve: each archive's replicas on the nodes of a cluster, and the application in front of them."""

FRONT = "@front"
"""The name of the deployment that speaks HTTP; no model can have it. It stands here for what must not import Ray yet."""
