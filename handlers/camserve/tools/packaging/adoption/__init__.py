"""Takes an archive that is served already, with its handler, into a new one that explains."""
