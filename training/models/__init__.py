"""Models: loading, heads, attention on packed rows, adapters, export."""
