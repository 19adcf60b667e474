"""Problems: where they come from, and the order in which training sees them."""
