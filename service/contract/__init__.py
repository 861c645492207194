"""What the server, the client and the dashboard share: schemas and errors."""
