"""Opens an archive, and loads its handler into this process or into a fresh one."""
