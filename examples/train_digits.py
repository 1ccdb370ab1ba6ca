"""Trains a small neural network on handwritten digits, and writes what training jobs write.

Knows its output directory and nothing of what is behind it: `$CLOUDAI_OUTPUT`, else `/output`. Every epoch
adds a line to metrics.csv and to train.log and saves a checkpoint; a run that finds `last.safetensors`
there goes on after it. SIGTERM ends it after the epoch that is running, with status 143.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

EPOCH_COUNT = 10
HIDDEN_UNITS = 256
LEARNING_RATE = 0.02
BATCH_IMAGES = 64
SEED = 0
PIXEL_MAX = 16.0

FloatArray = NDArray[np.float64]
LabelArray = NDArray[np.int64]


@dataclass(frozen=True)
class Digits:
    """8 x 8 images, flattened and standardised; labels 0 to 9."""

    train_images: FloatArray  # (1347, 64)
    train_labels: LabelArray
    test_images: FloatArray  # (450, 64)
    test_labels: LabelArray


@dataclass(frozen=True)
class EpochMetrics:
    """One line of metrics.csv."""

    epoch: int
    train_loss: float
    test_loss: float
    test_accuracy: float
    seconds: float


def load_data() -> Digits:
    """The digits that come with scikit-learn, split once and for ever by the seed."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / PIXEL_MAX, labels, test_size=0.25, random_state=SEED, stratify=labels)
    train_images, test_images, train_labels, test_labels = parts
    scaler = StandardScaler().fit(train_images)
    return Digits(scaler.transform(train_images), train_labels, scaler.transform(test_images), test_labels)


class Trainer:
    """A classifier between two epochs, and how it is kept in a file."""

    def __init__(self, digits: Digits) -> None:
        self.epoch = 0
        self._digits = digits
        self._model = MLPClassifier(
            (HIDDEN_UNITS,),
            solver="sgd",
            batch_size=BATCH_IMAGES,
            learning_rate_init=LEARNING_RATE,
            random_state=SEED,
        )
        self._classes = np.arange(10)

    def train_epoch(self) -> EpochMetrics:
        """One pass over the training images."""
        started = time.perf_counter()
        digits = self._digits
        self._model.partial_fit(digits.train_images, digits.train_labels, classes=self._classes)
        self.epoch += 1
        probabilities = self._model.predict_proba(digits.test_images)
        return EpochMetrics(
            epoch=self.epoch,
            train_loss=float(self._model.loss_),
            test_loss=float(log_loss(digits.test_labels, probabilities)),
            test_accuracy=float(np.mean(probabilities.argmax(axis=1) == digits.test_labels)),
            seconds=time.perf_counter() - started,
        )

    def save(self) -> bytes:
        """Weights and momentum as safetensors, with the epoch in its metadata."""
        return save(self._tensors(), metadata={"epoch": str(self.epoch)})

    def restore(self, path: Path) -> None:
        """Takes over a checkpoint's weights. A first epoch on an untrained model makes the arrays."""
        self._model.partial_fit(self._digits.train_images, self._digits.train_labels, classes=self._classes)
        with safe_open(path, framework="numpy") as checkpoint:
            for name, array in self._tensors().items():
                array[...] = checkpoint.get_tensor(name)
            self.epoch = int(checkpoint.metadata()["epoch"])

    def confusion(self) -> NDArray[np.int64]:
        """(10, 10) counts of test images: true digit by predicted digit."""
        counts = np.zeros((10, 10), dtype=np.int64)
        np.add.at(counts, (self._digits.test_labels, self._model.predict(self._digits.test_images)), 1)
        return counts

    def _tensors(self) -> dict[str, FloatArray]:
        model = self._model
        groups = {
            "weight": model.coefs_,
            "bias": model.intercepts_,
            "velocity": model._optimizer.velocities,  # scikit-learn has no other way to it
        }
        return {
            f"{name}.{index}": array for name, arrays in groups.items() for index, array in enumerate(arrays)
        }


def write_replacing(path: Path, data: bytes) -> None:
    """Makes data the content of path in one step, and durable: what is read is the old or the new file."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def append_metrics(path: Path, metrics: EpochMetrics) -> None:
    """Adds one line, and the heading before the first."""
    fields = asdict(metrics)
    with path.open("a") as file:
        if file.tell() == 0:
            file.write(",".join(fields) + "\n")
        file.write(",".join(f"{value:.6g}" for value in fields.values()) + "\n")


def read_metrics(path: Path) -> list[EpochMetrics]:
    """Every epoch so far, those before a restart too; of one that was trained twice, the last line."""
    _, *lines = path.read_text().splitlines()
    history = {}
    for line in lines:
        epoch, *values = line.split(",")
        history[int(epoch)] = EpochMetrics(int(epoch), *(float(value) for value in values))
    return list(history.values())


def draw_report(path: Path, history: list[EpochMetrics], confusion: NDArray[np.int64]) -> None:
    """The curves of training and what was taken for what, as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (curves, matrix) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    epochs = [metrics.epoch for metrics in history]
    curves.plot(epochs, [metrics.train_loss for metrics in history], label="training loss")
    curves.plot(epochs, [metrics.test_loss for metrics in history], label="test loss")
    curves.plot(epochs, [metrics.test_accuracy for metrics in history], label="test accuracy")
    curves.set(xlabel="epoch", title="Training")
    curves.legend()
    matrix.imshow(np.log1p(confusion), cmap="Blues")
    matrix.set(xlabel="predicted", ylabel="true", title="Test images", xticks=range(10), yticks=range(10))
    for (true, predicted), count in np.ndenumerate(confusion):
        if count:
            matrix.text(predicted, true, str(count), ha="center", va="center")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


class StopRequest:
    """Whether SIGTERM has come; looked at between epochs, so that no checkpoint is half done."""

    def __init__(self) -> None:
        self.is_set = False

    def __call__(self, signal_number: int, frame: FrameType | None) -> None:
        self.is_set = True


@contextmanager
def open_log(path: Path) -> Iterator[logging.Logger]:
    """A log on standard output and, line by line, in a file."""
    log = logging.getLogger("train_digits")
    log.setLevel(logging.INFO)
    handlers: list[logging.Handler] = [logging.FileHandler(path), logging.StreamHandler(sys.stdout)]
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
    try:
        yield log
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


def train(output: Path, epoch_count: int) -> int:
    """Trains up to the epoch count and writes everything to output; the exit status."""
    stop = StopRequest()
    signal.signal(signal.SIGTERM, stop)
    trainer = Trainer(load_data())
    last_checkpoint = output / "last.safetensors"
    metrics_file = output / "metrics.csv"
    with open_log(output / "train.log") as log:
        if last_checkpoint.exists():
            trainer.restore(last_checkpoint)
            log.info("going on after epoch %d", trainer.epoch)
        while trainer.epoch < epoch_count:
            metrics = trainer.train_epoch()
            append_metrics(metrics_file, metrics)
            checkpoint = trainer.save()
            write_replacing(output / f"epoch-{trainer.epoch}.safetensors", checkpoint)
            write_replacing(last_checkpoint, checkpoint)
            log.info(
                "epoch %d of %d: loss %.4f, test accuracy %.1f %%",
                trainer.epoch,
                epoch_count,
                metrics.train_loss,
                100 * metrics.test_accuracy,
            )
            if stop.is_set:
                log.info("stopped after epoch %d", trainer.epoch)
                return 128 + signal.SIGTERM
        history = read_metrics(metrics_file)
        draw_report(output / "training.png", history, trainer.confusion())
        summary = {
            "epochs": trainer.epoch,
            "hidden_units": HIDDEN_UNITS,
            "test_accuracy": history[-1].test_accuracy,
            "best_epoch": max(history, key=lambda metrics: metrics.test_accuracy).epoch,
            "training_seconds": sum(metrics.seconds for metrics in history),
        }
        write_replacing(output / "summary.json", json.dumps(summary, indent=2).encode() + b"\n")
        log.info("done: %s", output)
    return 0


if __name__ == "__main__":
    sys.exit(train(Path(os.environ.get("CLOUDAI_OUTPUT", "/output")), EPOCH_COUNT))
