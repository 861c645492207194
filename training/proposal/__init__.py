"""`navarch-train init`: a first configuration, from what is measured of the data, the model and this machine."""
