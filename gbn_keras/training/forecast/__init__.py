"""What a training with each batch size would cost, before it is trained."""
