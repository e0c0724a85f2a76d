"""The hunt for small requests that keep a worker busy: grammars of files and bodies, and a search for processor seconds."""
