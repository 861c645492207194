"""Who does it: the control plane, its store, engines, API and command line."""
