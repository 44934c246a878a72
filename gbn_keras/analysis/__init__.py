"""What the paper measures: weight distance, the loss landscape, gradient noise."""
