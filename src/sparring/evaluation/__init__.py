"""Does a policy hold up: threats, outcomes, statistics."""
