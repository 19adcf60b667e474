"""What is done before reinforcement: supervised warm-up."""
