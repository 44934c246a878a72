"""The parts of the program `train.py`: TensorFlow."""
