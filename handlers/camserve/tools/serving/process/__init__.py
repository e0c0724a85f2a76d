"""The server's process: its folder, its log, its signals and its end."""
