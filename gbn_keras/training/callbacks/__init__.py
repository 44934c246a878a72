"""What a training calls while it runs: its progress, and a stop if it diverges."""
