"""Strategies: how a module is spread over ranks and stepped."""
