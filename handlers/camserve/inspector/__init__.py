"""The inspector page that browsers get."""
