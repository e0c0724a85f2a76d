"""What a server starts with: its configuration file, addresses, archives, Java and cores."""
