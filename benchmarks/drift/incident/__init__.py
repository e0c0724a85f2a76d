"""From an alert to the pictures behind it, as whoever is paged walks it."""
