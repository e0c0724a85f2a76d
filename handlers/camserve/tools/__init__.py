"""What users run and no archive holds: packaging, serving, clients, and the `camserve` command."""
