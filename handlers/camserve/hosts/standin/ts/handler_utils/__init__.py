"""What decorates the steps of a handler."""
