# ruff: noqa: INP001 (a program, not a package)
"""Trains a classifier of tabular rows on Ray: what the pipeline `model-training` runs.

The parameters of the run are JSON in `PIPELINE_PARAMETERS`, checked by the bridge as the catalogue declares them.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def epochs(parameters: dict[str, Any]) -> None:
    """Train on this worker's share of the rows; runs once on each GPU."""
    import torch
    from ray import train
    from ray.train.torch import get_device, prepare_model

    rows = train.get_dataset_shard("train")
    layers: list[torch.nn.Module] = []
    width = len(parameters["columns"])
    for size in parameters["hidden"]:
        layers += [torch.nn.Linear(width, size), torch.nn.ReLU()]
        width = size
    model = prepare_model(torch.nn.Sequential(*layers, torch.nn.Linear(width, parameters["classes"])))
    optimizer = torch.optim.AdamW(model.parameters(), lr=parameters["learning_rate"])
    criterion = torch.nn.CrossEntropyLoss()
    for epoch in range(parameters["epochs"]):
        total, seen = 0.0, 0
        for batch in rows.iter_torch_batches(batch_size=parameters["batch_size"], device=get_device()):
            inputs = torch.stack([batch[name].float() for name in parameters["columns"]], dim=1)
            loss = criterion(model(inputs), batch["label"].long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, seen = total + loss.item() * len(inputs), seen + len(inputs)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if train.get_context().get_world_rank() == 0:
                torch.save(getattr(model, "module", model).state_dict(), Path(folder) / "model.pt")
                checkpoint = train.Checkpoint.from_directory(folder)
            train.report({"epoch": epoch, "loss": total / max(1, seen)}, checkpoint=checkpoint)


def main() -> None:
    import ray
    from ray.train import CheckpointConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    parameters = json.loads(os.environ["PIPELINE_PARAMETERS"])
    rows = ray.data.read_parquet(parameters["dataset"])
    columns = sorted(set(rows.schema().names) - {"label"})
    trainer = TorchTrainer(
        epochs,
        train_loop_config={**parameters, "columns": columns, "classes": int(rows.max("label")) + 1},
        datasets={"train": rows},
        scaling_config=ScalingConfig(num_workers=parameters["workers"], use_gpu=True),
        run_config=RunConfig(
            # The same at every attempt, so that there is one folder a run.
            name=os.environ["PIPELINE_REQUEST_ID"],
            storage_path=parameters["output"],
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    print(trainer.fit().metrics)


if __name__ == "__main__":
    main()
