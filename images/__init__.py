"""How an image is made: recipes, the Dockerfile, sshd and the entrypoint, building."""
