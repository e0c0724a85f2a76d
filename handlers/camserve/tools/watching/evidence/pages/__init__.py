"""The page of what was kept: as a file, and live."""
