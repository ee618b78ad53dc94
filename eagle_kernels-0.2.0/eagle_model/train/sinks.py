"""Where the metrics of each step go beside metrics.jsonl: TensorBoard, Weights & Biases.

    sinks = open_sinks(LoggingConfig(tensorboard=True), run, config={...})
    for sink in sinks: sink.write(metrics)
    for sink in sinks: sink.close()

Both get the record that metrics.jsonl has, its nested values under `grad_norms/vision` and the like. Their packages are
extras (`pip install eagle-kernels[tensorboard]`, `[wandb]`) and imported when a run asks for them. A run that is
resumed goes on in both. Of steps that are trained again TensorBoard shows the newer record alone, and W&B keeps the one
that it has, which says the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from eagle_model.fields import ConfigError
from eagle_model.train.metrics import StepMetrics

TENSORBOARD_FOLDER, WANDB_FOLDER = "tensorboard", "wandb"  # of a run's folder


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggingConfig:
    """Where the metrics of each step go, beside metrics.jsonl and the terminal."""

    tensorboard: bool = False  # event files in RUN/tensorboard: `tensorboard --logdir RUN`
    wandb_project: str = ""  # of Weights & Biases; empty: not there
    wandb_mode: str = "offline"  # offline: files in RUN/wandb, for `wandb sync`; online: sent as they come

    def __post_init__(self) -> None:
        if self.wandb_mode not in ("offline", "online"):
            raise ValueError(f"LoggingConfig: wandb_mode is {self.wandb_mode!r}; needs 'offline' or 'online'.")


class Sink(Protocol):
    def write(self, metrics: StepMetrics) -> None: ...

    def close(self) -> None: ...


def open_sinks(
    config: LoggingConfig, run_folder: Path, run_id: str, settings: Mapping[str, Any], *, steps_done: int = 0
) -> list[Sink]:
    """Those that the config asks for. settings: the run's configuration, which W&B shows. steps_done: records of later
    steps are those of a run that was killed.

    Raises: ConfigError when a package is missing.
    """
    sinks: list[Sink] = []
    if config.tensorboard:
        sinks.append(TensorBoardSink(run_folder / TENSORBOARD_FOLDER, steps_done))
    if config.wandb_project:
        sinks.append(WandbSink(config, run_folder, run_id, settings))
    return sinks


def flat(metrics: StepMetrics) -> dict[str, float]:
    """The numbers of a record by name; those of a nested one as `name/key`, and what is None left out."""
    found: dict[str, float] = {}
    for name, value in asdict(metrics).items():
        by_key = value if isinstance(value, dict) else {"": value}
        found |= {f"{name}/{key}".rstrip("/"): number for key, number in by_key.items()}
    return {name: value for name, value in found.items() if value is not None}


class TensorBoardSink:
    def __init__(self, folder: Path, steps_done: int) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard", error) from error
        self._writer = SummaryWriter(str(folder), purge_step=steps_done + 1)

    def write(self, metrics: StepMetrics) -> None:
        for name, value in flat(metrics).items():
            self._writer.add_scalar(name, value, metrics.step)

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    def __init__(self, config: LoggingConfig, run_folder: Path, run_id: str, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb", error) from error
        self._run = wandb.init(
            project=config.wandb_project,
            mode=config.wandb_mode,
            id=run_id,
            name=run_folder.resolve().name,
            resume="allow",
            dir=str(run_folder),
            config=dict(settings),
        )

    def write(self, metrics: StepMetrics) -> None:
        self._run.log(flat(metrics), step=metrics.step)

    def close(self) -> None:
        self._run.finish()


def _missing(package: str, error: ImportError) -> ConfigError:
    return ConfigError(
        f"logging asks for {package}, which is not installed ({error}): pip install 'eagle-kernels[{package}]', or "
        "leave it out."
    )
