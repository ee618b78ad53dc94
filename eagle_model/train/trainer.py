"""The trainer: rows of samples in, checkpoints out. A run that was killed goes on as if nothing had happened.

    done = Trainer(config, "runs/first").train()     # False: it was told to stop; the same line again resumes

run_folder/
    run.lock         who trains here, and since when: see run_folder.py
    run.json         the run's id
    config.json      its configuration: `eagle train --config` makes the same run again from it, bit for bit
    metrics.jsonl    every step once
    validation.jsonl and answers.jsonl   where the config asks for them
    samples/         samples of the first step, as the model saw them
    skipped.json     samples that were skipped, and why
    checkpoints/     see checkpoint.py
    report.html      see report.py
    tensorboard/, wandb/, trace-step-*.json, out-of-memory-step-*.json   where asked for, or where it came to that
"""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from eagle_model.batch import PackedBatch
from eagle_model.checkpoints import CheckpointError, Manifest, latest, read_manifest, read_newest, steps, verify_listed
from eagle_model.data.chat import ChatEncoder
from eagle_model.data.loader import Loader
from eagle_model.data.processor import CONFIG_FILE, TOKENIZER_FILE, Processor
from eagle_model.data.processor_files import read_kept
from eagle_model.data.recipe import read_recipe
from eagle_model.data.rows import read_samples
from eagle_model.data.sample import ROLES
from eagle_model.data.templates import DEFAULT_SYSTEM
from eagle_model.data.tokenizer import read_released_tokenizer, read_tokenizer, train_tokenizer
from eagle_model.fields import ConfigError, diff, few, shown, to_json
from eagle_model.files import is_out_of_memory, os_reason, read_json, write_json
from eagle_model.model import lora
from eagle_model.model.config import PRESETS, EagleConfig
from eagle_model.model.eagle import Eagle, build, load, read_model_config
from eagle_model.model.fp8 import use_fp8
from eagle_model.model.loss import LossPer, divisor, sqrt_mass
from eagle_model.model.recompute import RunLayer
from eagle_model.model.weights import write_tensors
from eagle_model.train import checkpoint
from eagle_model.train.adapters import adapted, base_of, same_base
from eagle_model.train.answers import Answers
from eagle_model.train.config import CHANGEABLE_ON_RESUME, VERSION, TrainConfig, read_config, write_config
from eagle_model.train.memory import use_memory
from eagle_model.train.metrics import MetricsLog, StepMetrics, StepProgress
from eagle_model.train.neftune import Noise
from eagle_model.train.optimizer import Optimizer, learning_rate
from eagle_model.train.parallel import Layout, parallelize
from eagle_model.train.parts import check_multipliers, freeze, multiplier
from eagle_model.train.precision import DTYPES, Masters
from eagle_model.train.profiling import is_traced, remember_memory, traced, write_memory_snapshot
from eagle_model.train.provenance import provenance
from eagle_model.train.report import MAX_SAMPLES, save_samples, write_report
from eagle_model.train.run_folder import take
from eagle_model.train.sinks import open_sinks
from eagle_model.train.step_meter import StepMeter
from eagle_model.train.stop import Stop
from eagle_model.train.validation import Validation

READ_ON_RESUME = (
    "config.json",
    lora.CONFIG_FILE,
    lora.WEIGHTS_FILE,
    CONFIG_FILE,
    TOKENIZER_FILE,
    "training/config.json",
    "training/optimizer.safetensors",
    "training/rng.safetensors",
    "training/state.json",
)
OWN_VOCAB_SIZE = 512  # of a tokenizer that is trained on the recipe's text


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why. The checkpoints are as they were."""


class Trainer:
    """One run in its folder, which is this trainer's alone until `train` returns or `close` is called."""

    def __init__(
        self,
        config: TrainConfig,
        run_folder: str | Path,
        *,
        device: torch.device | str | None = None,
        say: Callable[[str], None] = print,
        profile: bool = False,
    ) -> None:
        """Takes up the newest complete checkpoint of `run_folder`, or starts a new run there.

        Args:   device: by default the GPU where there is one, else the CPU.  say: takes messages for the terminal.
                profile: writes a trace of one step into the run's folder (profiling.py).
        Raises: ConfigError when the folder's run has another configuration, or the folder is in use by another
                trainer, holds files but no run, or cannot be written to; CheckpointError when it has checkpoints and
                none can be used; DataError as `Loader` does.
        """
        if not config.data.recipe:
            raise ConfigError("data.recipe is empty; needs a recipe or an annotation file: --set data.recipe=FILE.")
        self.config, self.run_folder = with_absolute_paths(config), Path(run_folder)
        self._stop = Stop()
        self._say = self._stop.when_closed(say)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = DTYPES[config.dtype]
        self._profile = profile
        self.step = 0  # how many are done
        self._shown: list[PackedBatch] = []  # of the first step, for the report
        self._sample_ids: list[str] = []  # of the step that is trained
        self._saved_step = 0
        self.checkpoints = self.run_folder / "checkpoints"
        self._open = contextlib.ExitStack()
        self._open.callback(take(self.run_folder, self._say).release)  # taken first: planning may take an hour
        try:
            resumed = latest(self.checkpoints, self._say)
            if resumed is None:
                self._start_new()
            else:
                self._resume(resumed)
        except BaseException:
            self.close()
            raise

    @property
    def stopped_by(self) -> signal.Signals | None:
        """The signal that ended `train` early; SIGPIPE when whoever read its output went away."""
        return self._stop.signal

    def close(self) -> None:
        """Ends the loader and gives the run folder back; for a trainer whose `train` is never called."""
        self._open.close()

    def _start_new(self) -> None:
        config = self.config
        self.run_id = secrets.token_hex(8)
        torch.manual_seed(config.seed)
        self.model, processor = new_model(config, device=self.device, say=self._say)
        self._base = base_of(self.model)
        self._prepare(processor)
        if (self.run_folder / "run.json").exists():
            self._say(f"{self.run_folder} holds a run without a complete checkpoint: starting it anew.")
        self._write_about()

    def _resume(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        if not (folder / "training").is_dir():
            raise ConfigError(
                f"{folder} holds a model and no state of training, as eagle convert makes it: nothing to resume. Give "
                f"--run another folder and start from it: --set model={self.run_folder}"
            )
        state = read_json(folder / "training" / "state.json")
        self._check_belongs(folder, manifest, state)
        self._check_same_config(read_config(folder / "training" / "config.json"), folder)
        self.run_id, self.step, self._saved_step = state["run"], state["step"], state["step"]
        tensors = load_file(folder / "training" / "optimizer.safetensors")
        self._base = state.get("base")
        if self.config.lora is None:
            self.model = _placed(read_model_config(folder), folder, self.device, is_verified=True)
        else:
            base = same_base(self._base, folder)
            self.model = adapted(read_model_config(base), base, self.config, self.device)
            lora.load_adapter(self.model, folder, dtype=torch.float32)
        self._prepare(Processor.from_pretrained(folder))
        if self.validation is not None and "validation" in state:
            if not self.validation.load_state_dict(state["validation"]):
                self._say("The held-out data have changed: looking for the lowest loss anew.")
            elif self.validation.best_step == self.step:
                self._keep_best()  # it was killed before
        self.optimizer.load_state_dict(tensors)
        self.loader.load_state_dict(state["loader"])
        self._set_rng_state(load_file(folder / "training" / "rng.safetensors"))
        for step, path in steps(self.checkpoints).items():
            if step > self.step:  # `latest` has said what is wrong with it; this run will write that step anew
                self._say(f"Set {path.name} aside as {checkpoint.set_aside(path).name}.")
        self._write_about()
        self._say(f"Resuming {self.run_folder} after step {self.step}.")

    def _check_belongs(self, folder: Path, manifest: Manifest, state: dict[str, Any]) -> None:
        if unlisted := [name for name in READ_ON_RESUME if name not in manifest.files and (folder / name).exists()]:
            raise CheckpointError(f"{folder} holds {few(unlisted)}, which its manifest does not list. Move it away.")
        says = (state["run"], state["step"])
        if says != (manifest.run, manifest.step):
            raise CheckpointError(
                f"{folder}: manifest.json is of run and step {few([manifest.run, manifest.step])}, "
                f"training/state.json of {few(says)}. Move the checkpoint away."
            )
        about = self.run_folder / "run.json"
        try:
            ours = read_json(about)["run"]
        except (OSError, ValueError, KeyError, TypeError):
            ours = manifest.run  # lost: checkpoints hold all that it says
        if ours != manifest.run:
            raise CheckpointError(
                f"{folder} is of run {few([manifest.run])}, and {about} of run {few([ours])}. Move away what does not "
                "belong here."
            )

    def _check_same_config(self, old: TrainConfig, folder: Path) -> None:
        changed = diff(old, self.config)
        lines = [f"{path}: {shown(before)} -> {shown(after)}" for path, (before, after) in changed.items()]
        refused = [line for path, line in zip(changed, lines, strict=True) if path not in CHANGEABLE_ON_RESUME]
        if refused:
            raise ConfigError(
                f"{folder} was trained with another configuration: {'; '.join(refused)}. Set these back to resume, or "
                f"use a new run folder. A run may change {', '.join(sorted(CHANGEABLE_ON_RESUME))} alone."
            )
        for line in lines:
            self._say(f"Changed since {folder.name}: {line}")

    def _prepare(self, processor: Processor) -> None:
        """What a new run and a resumed one have in common, once there is a model."""
        config = self.config
        self.model.train()
        if config.lora is None:
            freeze(self.model, config)
        check_multipliers(self.model, config.optimizer.multipliers)
        for module in self.model.vision.unused:  # AdamW would decay what no gradient reaches
            module.requires_grad_(False)
        if self.model.adapter is not None:
            parameters = list(self.model.parameters())
            num_trained = sum(p.numel() for p in parameters if p.requires_grad)
            num_all = sum(p.numel() for p in parameters)
            self._say(f"Training {num_trained:,} of {num_all:,} parameters: adapters of {self.model.adapter.base}.")
        if config.fp8 is not None:
            self._say(use_fp8(self.model, config.fp8))
        if config.compile:
            for layer in (*self.model.vision.layers, *self.model.llm.layers):
                layer.compile()
        memory, multipliers = config.memory, config.optimizer.multipliers
        self.run_layer = use_memory(self.model, memory, self.device)
        host = torch.device("cpu") if memory.optimizer == "host" else None
        masters = Masters(self.model, self.dtype, host=host, stochastic=memory.stochastic_rounding)
        self.optimizer = Optimizer(
            masters,
            config.optimizer,
            multiplier=lambda name: multiplier(name, multipliers),
            in_8_bits=memory.optimizer == "adamw8bit",
            stochastic_rounding=memory.stochastic_rounding,
        )
        self.noise = Noise(self.model, alpha=config.neftune_alpha, seed=config.seed) if config.neftune_alpha else None
        self._say(f"Planning the samples of {config.data.recipe}.")
        self.loader = self._open.enter_context(Loader(config.data, processor))
        num_skipped = len(self.loader.skipped)
        left_out = f", {num_skipped} skipped" if num_skipped else ""
        self._say(f"{self.loader.num_samples} samples in {self.loader.num_rows} rows an epoch{left_out}.")
        self._say(self.loader.contents)
        self.processor = self.loader.processor
        self.max_steps = self._count_steps()
        self._say(f"{self.max_steps} steps of {config.rows_per_step} rows, {config.tokens_per_step:,} tokens at most.")
        self.meter = StepMeter(self.model, config)
        self.validation = self.answers = None
        if config.validation is not None:
            self.validation = Validation(config, self.processor, self.run_folder, steps_done=self.step)
            self._open.callback(self.validation.close)
        if config.answers is not None:
            self.answers = Answers(config, self.processor, self.run_folder, steps_done=self.step)

    def _count_steps(self) -> int:
        """Of the whole run. By epochs it is what they would take if every row could be loaded."""
        if self.config.max_steps is not None:
            return self.config.max_steps
        assert self.config.num_epochs is not None
        return math.ceil(self.loader.rows_left(self.config.num_epochs) / self.config.rows_per_step)

    @property
    def is_done(self) -> bool:
        """Whether there is no step left to do: all are done, or no lower loss on held-out data is in sight. By epochs
        it is the data's end that counts: rows that cannot be loaded make it come early."""
        if self.validation is not None and self.validation.is_over:
            return True
        if self.config.num_epochs is not None and self.loader.rows_left(self.config.num_epochs) == 0:
            return True
        return self.step >= self.max_steps

    def _length(self) -> str:
        if self.validation is not None and self.validation.is_over:
            return f"has found no lower loss on held-out data since step {self.validation.best_step}"
        name = "max_steps" if self.config.num_epochs is None else "num_epochs"
        return f"{name} is {getattr(self.config, name)}"

    def _write_about(self) -> None:
        with self._writing("run.json and config.json"):
            made_by = provenance(self.device)
            write_json(self.run_folder / "run.json", {"version": VERSION, "run": self.run_id, "made_by": made_by})
            write_config(self.run_folder / "config.json", self.config)

    def train(self) -> bool:
        """Trains to the end, or until it is told to stop (see stop.py); ends with a checkpoint and a report.

        Returns: whether the run is done; if not, `stopped_by` says why, and making the Trainer again resumes.
        Raises:  TrainingError when a loss or a gradient is not finite, a step does not fit into memory, or a file
                 cannot be written. The run can go on from its newest checkpoint.
        """
        try:
            self._train()
            with self._writing("The report"):
                report = write_report(self.run_folder, self._say)
        finally:
            self.close()
        done = self.is_done
        if not done:
            of = f"{self.step} of {self.max_steps}"
            self._say(f"Stopped after step {of}; it is saved. The same command resumes.")
        self._say(f"Report: {report}")
        return done

    def _train(self) -> None:
        config, steps_done = self.config, self.step
        if self.is_done:
            self._say(f"{self.run_folder} has done {self.step} steps, and {self._length()}: nothing to train.")
        with self._writing("metrics.jsonl"):
            log = MetricsLog(self.run_folder / "metrics.jsonl", steps_done=self.step)
        progress = StepProgress(
            steps_done=self.step,
            max_steps=self.max_steps,
            log_every_steps=config.log_every_steps,
            say=self._say,
        )
        sinks = open_sinks(config.logging, self.run_folder, self.run_id, to_json(config))
        if self._profile:
            remember_memory(self.device)
        with contextlib.ExitStack() as closing:
            for sink in (log, *sinks):
                closing.callback(sink.close)
            closing.enter_context(self._stop)
            closing.enter_context(progress)
            while not (self.is_done or self._stop.requested):
                traces = self._profile and is_traced(self.step + 1, steps_done=steps_done, max_steps=self.max_steps)
                with self._fitting_into_memory(), self._traced() if traces else contextlib.nullcontext():
                    metrics = self._train_step()
                with self._writing("metrics.jsonl"):
                    log.write(metrics)
                with self._writing("What logging asks for"):
                    for sink in sinks:
                        sink.write(metrics)
                progress.show(metrics)
                is_best = self._look()
                if is_best or self.step % config.save_every_steps == 0:
                    self.save()
                if is_best:
                    self._keep_best()
            if self._saved_step != self.step:
                self.save()

    @contextlib.contextmanager
    def _traced(self) -> Iterator[None]:
        path = self.run_folder / f"trace-step-{self.step + 1:06d}.json"
        with self._writing("The trace"), traced(path):
            yield
        self._say(f"Trace of step {self.step}: {path}")

    def _look(self) -> bool:
        """Validates and asks where it is time to; returns whether this step's checkpoint is the best to keep."""
        is_last, is_lower = self.is_done, False
        if self.answers is not None and self.answers.is_due(self.step, is_last=is_last):
            with self._writing("answers.jsonl"):
                self.answers.answer(self.model, self.step)
        if self.validation is not None and self.validation.is_due(self.step, is_last=is_last):
            with self._writing("validation.jsonl"):
                is_lower = self.validation.validate(self.model, self.step)
            self._say(self.validation.summary)
        return is_lower and self.config.validation is not None and self.config.validation.keep_best

    def _keep_best(self) -> None:
        if self.config.validation is not None and self.config.validation.keep_best:
            with self._writing("The best checkpoint"):
                checkpoint.keep_best(self.checkpoints, self.step)

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"{what} could not be written: {os_reason(error)}. {self._newest()}. Make room or mend the folder; the "
                "same command then goes on from there."
            ) from error

    def _newest(self) -> str:
        return f"The newest checkpoint is step {self._saved_step}'s" if self._saved_step else "There is no checkpoint"

    def _train_step(self) -> StepMetrics:
        config, meter = self.config, self.meter
        meter.begin()
        self._shown, self._sample_ids = [], []
        total, mass = accumulate_gradients(self.model, self._rows(), loss_per=config.loss_per, run_layer=self.run_layer)
        if self._shown:
            with self._writing("samples/"):
                self._save_samples(self._shown)
        meter.take_gradients(self.optimizer.masters.by_name, mass)
        grad_norm = self.optimizer.clip(mass)
        loss_value, norm_value = meter.read(total / divisor(mass), grad_norm)
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            self._stop_not_finite(self._sample_ids, loss_value, norm_value)
        lr = learning_rate(config.optimizer, self.step, self.max_steps)
        self.optimizer.step(lr)
        self.step += 1

        return meter.metrics(
            step=self.step,
            epoch=self.loader.epoch,
            loss=loss_value,
            learning_rate=lr,
            grad_norm=norm_value,
            num_skipped_samples=len(self.loader.skipped),
        )

    def _rows(self) -> Iterator[PackedBatch]:
        """The rows of one step, each on the device when it is asked for; the meter sees them all."""
        for number, batch in enumerate(self.meter.rows(islice(self.loader, self.config.rows_per_step))):
            if self.step == 0 and len(self._sample_ids) < MAX_SAMPLES:
                self._shown.append(batch)  # for the report
            self._sample_ids += batch.sample_ids
            batch = batch.to(self.device, dtype=self.dtype)
            if self.noise is not None:
                self.noise.begin_row(batch.cu_seqlens, step=self.step, row=number)
            yield batch

    @contextlib.contextmanager
    def _fitting_into_memory(self) -> Iterator[None]:
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            with contextlib.suppress(OSError):  # the disk may be full as well
                snapshot = self.run_folder / f"out-of-memory-step-{self.step + 1:06d}.json"
                if write_memory_snapshot(snapshot, self.device) is not None:
                    self._say(f"What took the memory: {snapshot}")
            said = str(error).partition("\n")[0]
            raise TrainingError(
                f"Step {self.step + 1} does not fit into memory{f' ({said})' if said else ''}. {self._newest()}. Use "
                "another machine, or, in a new run, memory.activations=block or offload, memory.mlp_chunk_tokens=8192, "
                "memory.vision_chunk_tiles=8, memory.optimizer=adamw8bit or host, or a smaller "
                "processor.sampling.context_tokens or rows_per_step. docs/memory.md says what each saves."
            ) from error

    def _stop_not_finite(self, ids: list[str], loss: float, grad_norm: float) -> None:
        path = self.run_folder / f"not-finite-step-{self.step + 1:06d}.json"
        about = {"step": self.step + 1, "loss": repr(loss), "grad_norm": repr(grad_norm), "sample_ids": ids}
        with self._writing(path.name):
            write_json(path, about)
        raise TrainingError(
            f"Step {self.step + 1}: loss is {loss}, gradient norm {grad_norm}; both need to be finite. The step was "
            f"not taken. {self._newest()}. Its samples: {few(ids)} (all in {path}). "
            f"Look at these samples, or lower optimizer.learning_rate in a new run."
        )

    def save(self) -> Path:
        """Writes the checkpoint of the step that was just done, then deletes what keep_last no longer keeps."""
        with self._writing(f"The checkpoint of step {self.step}"):
            path = checkpoint.save(self.checkpoints, self.step, self.run_id, self._write_checkpoint)
        self._saved_step = self.step
        with self._writing("checkpoints/"):
            checkpoint.prune(self.checkpoints, self.run_id, self.config.keep_last, self._say)
        with self._writing("skipped.json"):
            write_json(self.run_folder / "skipped.json", self.loader.skipped)
        return path

    def _write_checkpoint(self, folder: Path) -> None:
        if self.model.adapter is None:
            self.model.save_pretrained(folder)
        else:
            lora.save_adapter(self.model, folder)
        self.processor.save_pretrained(folder)
        training = folder / "training"
        training.mkdir()
        write_tensors(training / "optimizer.safetensors", self.optimizer.state_dict())
        write_tensors(training / "rng.safetensors", self._rng_state())
        state = {
            "run": self.run_id,
            "step": self.step,
            "loader": self.loader.state_dict(),
            "torch": torch.__version__,
        }
        if self._base is not None:
            state["base"] = self._base
        if self.validation is not None:
            state["validation"] = self.validation.state_dict()
        (training / "state.json").write_text(json.dumps(state))
        write_config(training / "config.json", self.config)

    def _rng_state(self) -> dict[str, Tensor]:
        """Of the generators that dropout draws from."""
        on_gpu = {"torch_cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {}
        return {"torch_cpu": torch.get_rng_state(), **on_gpu}

    def _set_rng_state(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["torch_cpu"])
        if self.device.type == "cuda" and "torch_cuda" in state:
            torch.cuda.set_rng_state(state["torch_cuda"], self.device)

    def _save_samples(self, batches: list[PackedBatch]) -> None:
        save_samples(
            self.run_folder / "samples",
            batches,
            decode=lambda ids: self.processor.tokenizer.decode(ids, skip_special_tokens=False),
            patch_px=self.config.processor.patch_px,
            mean=self.processor.config.mean,
            std=self.processor.config.std,
        )


def accumulate_gradients(
    model: Eagle,
    batches: Iterable[PackedBatch],
    *,
    loss_per: LossPer = "sample",
    run_layer: RunLayer | None = None,
) -> tuple[Tensor, Tensor]:
    """Adds up the gradients of a step's rows, one row after the other: of mass times the step's loss.

    The mass, which the loss is divided by, is known after the last row: one row at a time need be there.
    run_layer: what of each layer is kept for backward, as `use_memory` gives it.
    Returns: mass times the loss, and the mass, fp32 scalars; `Optimizer.clip` divides the gradients by it.
    """
    device = model.lm_head.weight.device
    one = torch.ones((), device=device)
    total, mass = torch.zeros_like(one), torch.zeros_like(one)
    for batch in batches:
        loss = model(batch, one, loss_per=loss_per, run_layer=run_layer)
        loss.backward()
        total += loss.detach()
        mass += sqrt_mass(batch.labels_T, batch.cu_seqlens, per=loss_per)
    return total, mass


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The config with its files and folders as seen from here, so that it means the same from anywhere else."""

    def absolute(path: str) -> str:
        return str(Path(path).absolute()) if path else path

    data = config.data
    return replace(
        config,
        model=config.model if config.model in PRESETS else absolute(config.model),
        adapter=absolute(config.adapter),
        tokenizer=absolute(config.tokenizer),
        data=replace(
            data,
            recipe=absolute(data.recipe),
            index_folder=None if data.index_folder is None else absolute(data.index_folder),
        ),
        validation=config.validation and replace(config.validation, recipe=absolute(config.validation.recipe)),
        answers=config.answers and replace(config.answers, prompts=absolute(config.answers.prompts)),
    )


def new_model(
    config: TrainConfig, *, device: torch.device | str = "cpu", say: Callable[[str], object] = print
) -> tuple[Eagle, Processor]:
    """The model that a new run starts from, and its processor. New weights come from torch's global generator.

    What is trained is fp32; with adapters, the weights under them are in the config's dtype.

    say: is told of damaged checkpoints of another run, from which this one starts, that were passed over.
    Raises: ConfigError when the model, its tokenizer and the processor do not fit each other, ValueError when one of
            their files cannot be read.
    """
    folder, ours = Path(config.model), config.processor
    if config.model not in PRESETS or config.lora is not None:
        if not config.model or not ((folder / "config.json").is_file() or steps(folder / "checkpoints")):
            presets = "" if config.lora else f"a preset ({', '.join(PRESETS)}) or "
            raise ConfigError(f"model is {config.model!r}; needs {presets}a folder with config.json.")
        return read_newest(folder, lambda checkpoint: _model_of(checkpoint, config, device), say)
    own = not config.tokenizer
    tokenizer = _tokenizer_of_the_recipe(config) if own else read_tokenizer(Path(config.tokenizer))
    cfg = PRESETS[config.model](
        vocab_size=tokenizer.get_vocab_size(),
        image_token_id=ChatEncoder(tokenizer).context_id,
        tile_px=ours.tile_px,
        patch_px=ours.patch_px,
    )
    cfg = replace(cfg.trained_on_tiles(ours.sampling.max_tiles), use_pixel_shuffle=ours.use_pixel_shuffle)
    cfg = _with_positions(cfg, config)
    return _placed(cfg, None, device), Processor(tokenizer, ours)


def _model_of(folder: Path, config: TrainConfig, device: torch.device | str) -> tuple[Eagle, Processor]:
    """The model of a folder, to be trained with a config's processor."""
    ours = config.processor
    verify_listed(folder, [] if config.tokenizer else [TOKENIZER_FILE])
    tokenizer = read_tokenizer(Path(config.tokenizer)) if config.tokenizer else read_released_tokenizer(folder)
    theirs = Processor.from_pretrained(folder).config if (folder / CONFIG_FILE).is_file() else ours
    cfg = read_model_config(folder)
    for name, got, need in (
        ("processor.tile_px", ours.tile_px, cfg.vision.tile_px),
        ("processor.patch_px", ours.patch_px, cfg.vision.patch_px),
        ("processor.use_pixel_shuffle", ours.use_pixel_shuffle, cfg.use_pixel_shuffle),
        ("processor.mean", ours.mean, theirs.mean),
        ("processor.std", ours.std, theirs.std),
        ("the tokenizer's id of <IMG_CONTEXT>", ChatEncoder(tokenizer).context_id, cfg.image_token_id),
    ):
        if got != need:
            raise ConfigError(f"{name} is {got}; the model in {folder} needs {need}.")
    if tokenizer.get_vocab_size() > cfg.text.vocab_size:
        raise ConfigError(
            f"The tokenizer of {config.tokenizer or folder} has {tokenizer.get_vocab_size()} tokens; the model in "
            f"{folder} has room for {cfg.text.vocab_size}. Use the tokenizer that belongs to the model."
        )
    cfg = _with_positions(cfg.trained_on_tiles(ours.sampling.max_tiles), config)
    processor = Processor(tokenizer, ours, kept={} if config.tokenizer else read_kept(folder))
    if config.lora is None:
        return _placed(cfg, folder, device), processor
    model = adapted(cfg, folder, config, device)
    if config.adapter:
        lora.load_adapter(model, config.adapter, dtype=torch.float32)
    return model, processor


def _with_positions(cfg: EagleConfig, config: TrainConfig) -> EagleConfig:
    """The model's config, for documents as long as the run's context. Raises ConfigError where they may not be."""
    context, has = config.processor.sampling.context_tokens, cfg.text.max_position_embeddings
    needs = max(has, config.max_position_embeddings or 0)
    if needs < context:
        raise ConfigError(
            f"processor.sampling.context_tokens is {context}; the model in {config.model} is for documents of {has} "
            f"tokens (max_position_embeddings). Set max_position_embeddings={context}, which changes no weight and "
            "lets it learn longer ones, or lower the context."
        )
    scaling = cfg.text.rope_scaling
    if needs > has and scaling is not None and scaling.rope_type == "dynamic":
        raise ConfigError(
            f"max_position_embeddings is {needs}, the model's {has}; its rope_scaling is dynamic, which depends on "
            f"that number, so that raising it would change what the model does. Keep to {has}, and to that context."
        )
    return replace(cfg, text=replace(cfg.text, max_position_embeddings=needs)) if needs > has else cfg


def _placed(cfg: EagleConfig, source: Path | None, device: torch.device | str, *, is_verified: bool = False) -> Eagle:
    """Built, laid over the processes, then loaded, in fp32: what masters are taken from."""
    model = parallelize(build(cfg), Layout())
    load(model, source, dtype=torch.float32, device=device, is_verified=is_verified)
    return model


def _tokenizer_of_the_recipe(config: TrainConfig) -> Tokenizer:
    """A byte-level BPE of at most OWN_VOCAB_SIZE tokens, trained on what chats about the recipe's samples hold."""
    texts = [DEFAULT_SYSTEM, *ROLES, "<image 1>"]
    texts += [f"The first video sampled with 2.00 fps: Frame {i} sample at {i / 4:.2f}s: " for i in range(1, 17)]
    for source in read_recipe(config.data.recipe):
        # A row that cannot be read is the loader's to report: it has the policy for bad samples.
        for sample in read_samples(
            source,
            allow_outside_root=config.data.allow_outside_root,
            on_bad_row=lambda where, error: None,
        ):
            texts += [turn.text for turn in sample.turns]
    return train_tokenizer(sorted(texts), OWN_VOCAB_SIZE)
