"""The paper's own results, to show beside ours."""

from gbn_keras.training.run.tables import ARMS

# Tables 1 and 2: validation accuracy (%) of each arm, by network and data set.
_ACCURACY = {
    ("f1", "mnist"): (98.27, 97.05, 97.55, 97.60, 98.53),
    ("c1", "cifar10"): (87.80, 83.95, 86.15, 86.4, 88.20),
    ("resnet44", "cifar10"): (92.83, 86.10, 89.30, 90.50, 93.07),
    ("vgg", "cifar10"): (92.30, 84.1, 88.6, 91.50, 93.03),
    ("c3", "cifar100"): (61.25, 51.50, 57.38, 57.5, 63.20),
    ("wresnet16_4", "cifar100"): (73.70, 68.15, 69.05, 71.20, 73.57),
}
_ALEXNET = {
    4096: (57.10, 41.23, 53.25, 54.92, 59.5),
    8192: (57.10, 41.23, 53.25, 53.93, 59.5),
}


def arms(settings: dict) -> dict[str, float]:
    """The paper's accuracy (%) of each arm; empty if it does not have the training.

    Args:
        settings: Settings of the training with all techniques, as in `result.json`.
    """
    if settings["train_examples"]:
        return {}  # With a part of the data, it is a different training.
    key = settings["model"], settings["dataset"]
    if key == ("alexnet", "imagenet2012"):
        accuracy = _ALEXNET.get(settings["batch_size"], ())
    else:
        accuracy = _ACCURACY.get(key, ())
    return dict(zip(ARMS, accuracy, strict=False))
