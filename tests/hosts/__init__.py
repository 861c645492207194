"""Tests that cross hosts: several real Docker hosts on one machine."""
