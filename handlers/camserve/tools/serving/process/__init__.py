"""Runs the server's process: its temporary folder, its log, signals and its end."""
