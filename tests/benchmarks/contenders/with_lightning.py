"""Lightning: a LightningModule and its Trainer, without the slow parts that are not needed."""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

from tests.benchmarks.contenders.common import (
    DDP_OPTIONS,
    LEARNING_RATE,
    LOCAL_WORLD_SIZE,
    WORLD_SIZE,
    Stopwatch,
    mnist,
    network,
    parse_arguments,
    report,
)


class Classifier(LightningModule):  # type: ignore[misc]
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.loss_function = nn.CrossEntropyLoss()

    def training_step(self, batch: list[torch.Tensor], batch_index: int) -> torch.Tensor:
        images, labels = batch
        loss: torch.Tensor = self.loss_function(self.model(images), labels)
        return loss

    def test_step(self, batch: list[torch.Tensor], batch_index: int) -> None:
        images, labels = batch
        accuracy = (self.model(images).argmax(dim=1) == labels).float().mean()
        self.log("accuracy", accuracy, batch_size=len(labels), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=LEARNING_RATE, fused=True)


class EpochTimer(Callback):  # type: ignore[misc]
    def __init__(self, stopwatch: Stopwatch) -> None:
        self.stopwatch = stopwatch

    def on_train_epoch_start(self, *_: Any) -> None:
        self.stopwatch.start()

    def on_train_epoch_end(self, *_: Any) -> None:
        self.stopwatch.stop()


def main() -> None:
    """Train, evaluate and report."""
    arguments = parse_arguments()
    training, evaluation = Stopwatch(), Stopwatch()
    options, batch_size = arguments.loader_options, arguments.batch_size
    train_loader = DataLoader(mnist(arguments, train=True), batch_size, shuffle=True, **options)
    test_loader = DataLoader(mnist(arguments, train=False), batch_size, **options)
    trainer = Trainer(
        accelerator="auto",
        devices=LOCAL_WORLD_SIZE,
        num_nodes=WORLD_SIZE // LOCAL_WORLD_SIZE,
        strategy=DDPStrategy(**DDP_OPTIONS) if WORLD_SIZE > 1 else "auto",
        max_epochs=arguments.epochs,
        callbacks=[EpochTimer(training)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    classifier = Classifier(network(arguments))
    trainer.fit(classifier, train_loader)
    with evaluation.running():
        (scores,) = trainer.test(classifier, test_loader, verbose=False)
    report(training, evaluation, scores["accuracy"])


if __name__ == "__main__":
    main()
