"""Results as JSON, tables and plots."""
