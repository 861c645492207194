"""Who may do what: tokens, keys, secrets, and the host paths that may be mounted."""
