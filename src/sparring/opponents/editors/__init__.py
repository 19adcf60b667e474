"""Image editors of other packages, each in a file named after its package."""
