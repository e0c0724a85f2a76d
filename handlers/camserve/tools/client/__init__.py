"""Asks a server, or an archive in this process, and gives its answers types."""
