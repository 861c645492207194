"""Reading, checking, encoding, packing and loading training data."""
