"""What pictures may cost: limits that threads share, what each format's header may hold, and how much work a file is."""
