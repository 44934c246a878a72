"""What is asked of a trained network: its scores, and the loss around its weights."""
