"""The command lines of packaging and `inspect_model`, read without torch, so that their help is quick."""
