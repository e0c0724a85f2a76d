"""Monitoring as the tools see it: building the reference of good pictures, and the doctor's checks of a server."""
