"""Makes what is wanted and what is there meet: steps over leased rows, each of which may be cut off anywhere."""
