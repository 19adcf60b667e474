"""What a person sees of a run: progress and tables. Nothing here imports torch."""
