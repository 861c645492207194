"""Image builds, and which image a container gets."""
