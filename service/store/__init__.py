"""What is wanted and what was last seen, in a database."""
