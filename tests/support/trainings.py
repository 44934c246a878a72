"""Flags for short trainings with the program, and the weights that they save."""

import keras

SHORT = ("--batch_size=256", "--stretch=1", "--epochs=2")


def weights(run_dir):
    model = keras.models.load_model(f"{run_dir}/model.keras")
    return [*model.get_weights(), *[v.numpy() for v in model.optimizer.variables]]
