"""Complete runs as Python functions: one file per study."""
