"""What an archive holds besides the model: settings, labels, modules, requirements, and other files."""
