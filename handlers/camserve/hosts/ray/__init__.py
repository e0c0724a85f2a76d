"""Ray Serve: each archive's replicas on the nodes of a cluster, and the application in front of them."""
