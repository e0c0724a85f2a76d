"""The command-line flags that packaging and `inspect_model` share: which model, and the configuration's keys."""
