"""keras-tuner over the program's flags."""
