"""What is made before training, from models and problems."""
