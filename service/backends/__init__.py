"""What runs containers: a small interface, and Docker Engines behind it."""
