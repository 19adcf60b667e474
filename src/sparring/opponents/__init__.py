"""Adversaries that learn beside the policy."""
