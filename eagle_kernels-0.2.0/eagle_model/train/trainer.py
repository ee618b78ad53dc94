"""The trainer: rows of samples in, checkpoints out. A run that was killed goes on as if nothing had happened.

    done = Trainer(config, "runs/first").train()     # False: it was told to stop; the same line again resumes

run_folder/
    run.lock         who trains here, and since when: see run_folder.py
    run.json         the run's id, and whether it is done
    config.json      its configuration: `eagle train --config` makes the same run again from it, bit for bit
    metrics.jsonl    every step once
    validation.jsonl and answers.jsonl   where the config asks for them
    samples/         samples of the first step, as the model saw them
    skipped.json     samples that were skipped, and why
    guards.jsonl     steps that were left out, losses that jumped, and their samples: see guards.py
    checkpoints/     see checkpoint.py
    report.html      see report.py
    tensorboard/, wandb/, trace-step-*.json, out-of-memory-step-*.json, stacks-*/   where asked for, or where it came
                     to that

Several processes, started by torchrun, train one model as `layout` says. Each makes a Trainer of the same config and
folder; the first of them writes what is above, and speaks.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eagle_model.batch import PackedBatch
from eagle_model.checkpoints import CheckpointError, Manifest, read_manifest, steps
from eagle_model.data.executor import DaliExecutor
from eagle_model.data.loader import Loader
from eagle_model.data.processor import Processor
from eagle_model.fields import ConfigError, diff, few, from_json, shown, to_json
from eagle_model.files import is_out_of_memory, os_reason, read_json, write_json
from eagle_model.model import lora
from eagle_model.model.context import Context
from eagle_model.model.eagle import Eagle, read_model_config
from eagle_model.model.fp8 import use_fp8
from eagle_model.model.loss import LossPer, divisor, sqrt_mass
from eagle_model.model.recompute import RunLayer
from eagle_model.train import checkpoint, state
from eagle_model.train.adapters import adapted, base_of, same_base
from eagle_model.train.answers import Answers
from eagle_model.train.config import CHANGEABLE_ON_RESUME, VERSION, TrainConfig, read_config, write_config
from eagle_model.train.context_parallel import share
from eagle_model.train.first import on_all, on_first
from eagle_model.train.guards import Guards, StepIds
from eagle_model.train.memory import use_memory
from eagle_model.train.metrics import MetricsLog, StepMetrics, StepProgress
from eagle_model.train.neftune import Noise
from eagle_model.train.optimizer import Optimizer, learning_rate
from eagle_model.train.parts import check_multipliers, freeze, multiplier
from eagle_model.train.precision import DTYPES, Masters
from eagle_model.train.profiling import is_traced, remember_memory, traced, write_memory_snapshot
from eagle_model.train.provenance import provenance
from eagle_model.train.ranks import start
from eagle_model.train.report import MAX_SAMPLES, save_samples, write_report
from eagle_model.train.run_folder import take
from eagle_model.train.save_times import SaveTimes
from eagle_model.train.saver import Saver
from eagle_model.train.sinks import open_sinks
from eagle_model.train.slices import read_index, read_rows
from eagle_model.train.staging import Staging
from eagle_model.train.start import new_model, placed, with_absolute_paths
from eagle_model.train.step_meter import StepMeter
from eagle_model.train.stop import Stop
from eagle_model.train.validation import Validation
from eagle_model.train.watchdog import Watchdog


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why. The checkpoints are as they were."""


class LostProcess(TrainingError):
    """Another of several processes is gone, or the way to it; the same command resumes."""


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
                trainer, holds files but no run, or cannot be written to, or the layout cannot work; CheckpointError
                when it has checkpoints and none can be used; DataError as `Loader` does; FirstFailed where the first
                of several processes raised one of these; LostProcess where another one is gone.
        """
        if not config.data.recipe:
            raise ConfigError("data.recipe is empty; needs a recipe or an annotation file: --set data.recipe=FILE.")
        self.config, self.run_folder = with_absolute_paths(config), Path(run_folder)
        self.ranks = start(config.layout, device, rows_per_step=config.rows_per_step)
        self.device = self.ranks.device
        self._stop = Stop(is_first=self.ranks.is_first, is_alone=config.layout.processes == 1)
        self._say = self._stop.when_closed(say) if self.ranks.is_first else _silent
        self.dtype = DTYPES[config.dtype]
        self._profile = profile and self.ranks.is_first
        self.step = 0  # how many are done
        self._shown: list[PackedBatch] = []  # of the first step, for the report
        self._ids: StepIds = []  # of the samples of the step that is trained, of this rank's rows
        self._begun_step = 0  # whose checkpoint was begun last
        self._times = SaveTimes(
            save_every_minutes=config.save_every_minutes, time_limit_minutes=config.time_limit_minutes
        )
        self.checkpoints = self.run_folder / "checkpoints"
        self._open = contextlib.ExitStack()
        try:
            self._check_told_the_same()
            on_first(self.ranks, self._lock)  # before all else: planning may take an hour
            resumed = state.newest(self.checkpoints, self.ranks, self._say)
            if resumed is None:
                self._start_new()
            else:
                self._resume(resumed)
        except BaseException as error:
            self._open.close()
            if isinstance(error, TrainingError) or not is_lost_peer(error):
                raise
            raise LostProcess(
                f"Another process ended before the first step, or the network between ({_first_line(error)}). It has "
                "said why, if it could. The same command starts again."
            ) from error

    @property
    def stopped_by(self) -> signal.Signals | None:
        """The signal that ended `train` early; SIGPIPE when whoever read its output went away."""
        return self._stop.signal

    def close(self) -> None:
        """Ends the loader and gives the run folder back; for a trainer whose `train` is never called."""
        self._open.close()
        self.ranks.close()

    def _check_told_the_same(self) -> None:
        """Each process has its own command line: where one differs, they would train something that nobody wanted."""
        first = self.ranks.gather(to_json(self.config) if self.ranks.is_first else None)[0]
        changed = diff(from_json(TrainConfig, first), self.config)
        mine = [f"{path}: {shown(theirs)} -> {shown(ours)}" for path, (theirs, ours) in changed.items()]
        for rank, lines in enumerate(self.ranks.gather(mine)):
            if lines:
                raise ConfigError(
                    f"process {rank} was given another configuration than process 0: {'; '.join(lines)}. Start all "
                    "with the same one."
                )

    def _lock(self) -> None:
        self._open.callback(take(self.run_folder, self._say).release)

    def _start_new(self) -> None:
        config = self.config
        self.run_id = self.ranks.gather(secrets.token_hex(8))[0]
        torch.manual_seed(config.seed)
        self.model, processor = new_model(config, ranks=self.ranks, say=self._say)
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
        about = state.read_state(folder)
        self._check_belongs(folder, manifest, about)
        self._check_same_config(read_config(folder / state.CONFIG), folder)
        self.run_id, self.step, self._begun_step = about["run"], about["step"], about["step"]
        index = read_index(folder / state.TRAINING, self.step)
        self._base = about.get("base")
        if self.config.lora is None:
            self.model = placed(read_model_config(folder), folder, self.config, self.ranks, is_verified=True)
        else:
            base = same_base(self._base, folder)
            self.model = adapted(read_model_config(base), base, self.config, self.ranks)
            lora.load_adapter(self.model, folder, dtype=torch.float32)
        self._prepare(Processor.from_pretrained(folder))
        self.saver.saved_step = self.step
        if self.validation is not None and "validation" in about:
            if not self.validation.load_state_dict(about["validation"]):
                self._say("The held-out data have changed: looking for the lowest loss anew.")
            elif self.validation.best_step == self.step and self._keeps_best and self.ranks.is_first:
                with self._writing("The best checkpoint"):  # it was killed before
                    checkpoint.keep_best(self.checkpoints, self.step)
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}

        def take_up() -> None:
            tensors, generators = read_rows(index, trained, self.ranks)
            self.optimizer.load_state_dict(tensors)
            self.loader.load_state_dict(about["loader"])
            state.set_rng_state(generators, self.device)

        on_all(self.ranks, take_up, otherwise=CheckpointError)  # each reads files that the others do not
        for step, path in steps(self.checkpoints).items() if self.ranks.is_first else ():
            if step > self.step:  # `latest` has said what is wrong with it; this run will write that step anew
                self._say(f"Set {path.name} aside as {checkpoint.set_aside(path).name}.")
        self._write_about()
        self._say(f"Resuming {self.run_folder} after step {self.step}.")

    def _check_belongs(self, folder: Path, manifest: Manifest, told: dict[str, Any]) -> None:
        read = [*state.READ_ON_RESUME, *(f"{state.TRAINING}/{path.name}" for path in folder.glob("training/rank-*"))]
        if unlisted := [name for name in read if name not in manifest.files and (folder / name).exists()]:
            raise CheckpointError(f"{folder} holds {few(unlisted)}, which its manifest does not list. Move it away.")
        says = (told["run"], told["step"])
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
        in_background = config.save_in_background
        self.saver = Saver(self.checkpoints, self.run_id, self.ranks, in_background=in_background)
        self._open.callback(self.saver.close)
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
        loader = Loader(
            config.data,
            processor,
            share=self.ranks,
            rows_per_step=config.rows_per_step,
            executor=DaliExecutor(processor.tiling, self.device) if config.data.video_decoder == "dali" else None,
            say=self._say,
        )
        self.loader = self._open.enter_context(loader)
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
            self.validation = Validation(
                config, self.processor, self.run_folder, steps_done=self.step, ranks=self.ranks
            )
            self._open.callback(self.validation.close)
        if config.answers is not None:
            self.answers = Answers(config, self.processor, self.run_folder, steps_done=self.step, ranks=self.ranks)
        self.guards = Guards(config.guards, self.run_folder, self.ranks, say=self._say, steps_done=self.step)

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
        if not self.ranks.is_first:
            return
        with self._writing("run.json and config.json"):
            made_by = provenance(self.device)
            about = {"version": VERSION, "run": self.run_id, "done": self.is_done, "made_by": made_by}
            write_json(self.run_folder / "run.json", about)
            write_config(self.run_folder / "config.json", self.config)

    def train(self) -> bool:
        """Trains to the end, or until it is told to stop (see stop.py); ends with a checkpoint and a report.

        Returns: whether the run is done; if not, `stopped_by` says why, and making the Trainer again resumes.
        Raises:  TrainingError when a loss or a gradient is not finite, a step does not fit into memory, or a file
                 cannot be written. The run can go on from its newest checkpoint.
        """
        try:
            self._train()
            self._write_about()
            if self.ranks.is_first:
                with self._writing("The report"):
                    report = write_report(self.run_folder, self._say)
        except RuntimeError as error:
            self._open.close()
            if isinstance(error, TrainingError) or not is_lost_peer(error):
                raise
            raise LostProcess(
                f"Another process is gone in step {self.step + 1}, or the network between ({_first_line(error)}). "
                f"{self._newest()}. The same command resumes."
            ) from error
        except BaseException:
            self._open.close()
            raise
        self.close()
        done = self.is_done
        if not done:
            of = f"{self.step} of {self.max_steps}"
            self._say(f"Stopped after step {of}; it is saved. The same command resumes.")
        if self.ranks.is_first:
            self._say(f"Report: {report}")
        return done

    def _train(self) -> None:
        config, steps_done = self.config, self.step
        if self.is_done:
            self._say(f"{self.run_folder} has done {self.step} steps, and {self._length()}: nothing to train.")
        minutes = config.guards.hang_minutes
        with contextlib.ExitStack() as closing:
            seconds = None if minutes is None else 60 * minutes
            self._watchdog = closing.enter_context(
                Watchdog(self.run_folder, self.ranks, seconds=seconds, say=self._say)
            )
            show = self._open_logs(closing) if self.ranks.is_first else _silent
            closing.enter_context(self._stop)
            while not (self.is_done or self._stop.agreed(self.ranks)):
                traces = self._profile and is_traced(self.step + 1, steps_done=steps_done, max_steps=self.max_steps)
                with self._fitting_into_memory(), self._traced() if traces else contextlib.nullcontext():
                    metrics = self._train_step()
                if metrics is not None:
                    show(metrics)
                is_best = self._look()
                self._watchdog.at(f"what comes after step {self.step}")
                if self._is_save_due() or is_best:
                    self.save(is_best=is_best)
                with self._writing_checkpoint():
                    self.saver.check()
            if self._begun_step != self.step:
                self.save()
            with self._writing_checkpoint():
                self.saver.wait()

    def _is_save_due(self) -> bool:
        """By steps, by the clock, or because the job's time is nearly over, which also asks to stop."""
        due = self.step % self.config.save_every_steps == 0
        if not self._times.looks_at_clock:
            return due
        self._times.step_done(longest_save_seconds=self.saver.longest_seconds)
        by_clock, is_up = self.ranks.gather([self._times.is_save_due, self._times.is_up])[0]
        if is_up:
            self._stop.time_is_up()
        return due or by_clock or is_up

    def _open_logs(self, closing: contextlib.ExitStack) -> Callable[[StepMetrics], None]:
        """On the first rank: what writes and shows a step's metrics, until `closing` ends."""
        config = self.config
        with self._writing("metrics.jsonl"):
            log = MetricsLog(self.run_folder / "metrics.jsonl", steps_done=self.step)
        sinks = open_sinks(config.logging, self.run_folder, self.run_id, to_json(config), steps_done=self.step)
        if self._profile:
            remember_memory(self.device)
        for sink in (log, *sinks):
            closing.callback(sink.close)
        progress = closing.enter_context(
            StepProgress(
                steps_done=self.step,
                max_steps=self.max_steps,
                log_every_steps=config.log_every_steps,
                say=self._say,
            )
        )

        def show(metrics: StepMetrics) -> None:
            with self._writing("metrics.jsonl"):
                log.write(metrics)
            with self._writing("What logging asks for"):
                for sink in sinks:
                    sink.write(metrics)
            progress.show(metrics)

        return show

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
                self._watchdog.at(f"answers after step {self.step}")
                self.answers.answer(self.model, self.step)
        if self.validation is not None and self.validation.is_due(self.step, is_last=is_last):
            with self._writing("validation.jsonl"):
                about = f"validation after step {self.step}"
                is_lower = self.validation.validate(self.model, self.step, lambda: self._watchdog.at(about))
            self._say(self.validation.summary)
        return is_lower and self._keeps_best

    @property
    def _keeps_best(self) -> bool:
        return self.config.validation is not None and self.config.validation.keep_best

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
        step = self.saver.saved_step
        return f"The newest checkpoint is step {step}'s" if step else "There is no checkpoint"

    def _train_step(self) -> StepMetrics | None:
        """One step of all ranks; None where it was left out because it is not finite."""
        config, meter = self.config, self.meter
        meter.begin()
        self._shown, self._ids = [], []
        rows = accumulate_gradients(self.model, self._rows(), loss_per=config.loss_per, run_layer=self.run_layer)
        total, mass = self.ranks.total(rows[0], over="all"), self.ranks.total(rows[1])
        if self._shown and self.ranks.is_first:
            with self._writing("samples/"):
                self._save_samples(self._shown)
        meter.take_gradients(self.optimizer.masters, mass)
        grad_norm = self.optimizer.clip(mass)
        loss_value, norm_value = meter.read(total / divisor(mass), grad_norm)
        meter.add_up(self.ranks)
        lr, step = learning_rate(config.optimizer, self.step, self.max_steps), self.step + 1
        with self._writing(self.guards.path.name):
            may = self.guards.may_take(step, loss_value, norm_value, self._ids, bad_ids=meter.not_finite_ids)
        if self.guards.is_over:
            ids = [name for names in self.guards.all_ids(self._ids) for name in names]
            on_first(self.ranks, lambda: self._stop_not_finite(ids, loss_value, norm_value))
        self.step = step
        if not may:
            self.optimizer.leave_out()
            return None
        self.saver.copied()
        self.optimizer.step(lr)
        return meter.metrics(
            step=step,
            epoch=self.loader.epoch,
            loss=loss_value,
            learning_rate=lr,
            grad_norm=norm_value,
            num_skipped_samples=len(self.loader.skipped),
            num_left_out_steps=self.guards.num_left_out,
        )

    def _rows(self) -> Iterator[tuple[PackedBatch, Context | None]]:
        """This rank's rows of one step, each on the device when it is asked for; the meter sees them all."""
        rows = self.loader.step(self.config.rows_per_step)
        numbers: list[int] = []

        def batches() -> Iterator[PackedBatch]:
            for row in rows:
                numbers.append(row.number)
                yield row.batch

        self._watchdog.at(f"step {self.step + 1}, its first row's data")
        for batch in self.meter.rows(batches()):
            number = numbers[-1]
            self._watchdog.at(f"step {self.step + 1}, row {number}")
            if self.step == 0 and sum(len(names) for _, names in self._ids) < MAX_SAMPLES:
                self._shown.append(batch.to("cpu"))  # for the report
            self._ids.append((number, list(batch.sample_ids)))
            context = self.meter.context = share(batch, self.model, self.ranks)
            batch = batch.to(self.device, dtype=self.dtype)
            if self.noise is not None:
                rows_R = None if context is None else context.rows_R
                self.noise.begin_row(batch.cu_seqlens, step=self.step, row=number, rows_R=rows_R)
            yield batch, context
            self._watchdog.at(f"step {self.step + 1}, after row {number}")

    @contextlib.contextmanager
    def _fitting_into_memory(self) -> Iterator[None]:
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            with contextlib.suppress(OSError):  # the disk may be full as well
                rank = "" if self.ranks.is_first else f"-rank-{self.ranks.rank}"
                snapshot = self.run_folder / f"out-of-memory-step-{self.step + 1:06d}{rank}.json"
                if write_memory_snapshot(snapshot, self.device) is not None:
                    self._say(f"What took the memory: {snapshot}")
            where = "" if self.ranks.layout.processes == 1 else f" of rank {self.ranks.rank}"
            said = f" ({_first_line(error)})" if str(error) else ""
            raise TrainingError(
                f"Step {self.step + 1} does not fit into memory{where}{said}. {self._newest()}. Use "
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

    def save(self, *, is_best: bool = False) -> None:
        """Begins the checkpoint of the step that was just done, once the one before is complete (saver.py); then those
        that keep_last no longer keeps are deleted. is_best: a copy stays, whatever is kept."""
        step, skipped = self.step, list(self.loader.skipped)
        about = state.state_text(
            self.run_id,
            step,
            loader=self.loader.state_dict(),
            base=self._base,
            validation=None if self.validation is None else self.validation.state_dict(),
        )

        def take(staging: Staging | None) -> state.Share:
            return state.share_of(
                self.model, self.optimizer, dtype=self.dtype, step=step, ranks=self.ranks, staging=staging
            )

        def rest(folder: Path, share: state.Share, rows: Sequence[Mapping[str, Any]]) -> None:
            state.write_rest(
                folder,
                share,
                rows,
                processor=self.processor,
                dtype=self.dtype,
                config=self.config,
                state=about,
                step=step,
            )

        def then() -> None:
            if is_best:
                checkpoint.keep_best(self.checkpoints, step)
            checkpoint.prune(self.checkpoints, self.run_id, self.config.keep_last, self._say)
            write_json(self.run_folder / "skipped.json", skipped)

        with self._writing_checkpoint():
            self.saver.begin(step, take, rest=rest, then=then)
        self._begun_step = step
        self._times.saved()

    @contextlib.contextmanager
    def _writing_checkpoint(self) -> Iterator[None]:
        step = self.saver.step or self.step
        try:
            with self._writing(f"The checkpoint of step {step}"):
                yield
        except CheckpointError as error:
            raise TrainingError(str(error)) from error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                f"The copy of step {step} that is to be saved does not fit into memory. {self._newest()}. Set "
                "save_in_background=false: saves then need no copy, and training waits for them."
            ) from error

    def _save_samples(self, batches: list[PackedBatch]) -> None:
        save_samples(
            self.run_folder / "samples",
            batches,
            decode=lambda ids: self.processor.tokenizer.decode(ids, skip_special_tokens=False),
            patch_px=self.config.processor.patch_px,
            mean=self.processor.config.mean,
            std=self.processor.config.std,
            tokens_per_tile=self.processor.config.tokens_per_tile,
        )


def _silent(message: object) -> None:
    """Of ranks other than the first."""


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another process, or the way to it, is gone."""
    dist = torch.distributed
    words = ("gloo", "Connection closed by peer")
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or any(word in str(error) for word in words)
    )


def accumulate_gradients(
    model: Eagle,
    batches: Iterable[PackedBatch | tuple[PackedBatch, Context | None]],
    *,
    loss_per: LossPer = "sample",
    run_layer: RunLayer | None = None,
) -> tuple[Tensor, Tensor]:
    """Adds up the gradients of a step's rows, one row after the other: of mass times the step's loss.

    The mass, which the loss is divided by, is known after the last row: one row at a time need be there.
    batches: each with this rank's share of it, where several ranks share a row.
    run_layer: what of each layer is kept for backward, as `use_memory` gives it.
    Returns: mass times the loss, and the mass, fp32 scalars; `Optimizer.clip` divides the gradients by it. Of several
             ranks, the sum of the first is over all of them, of the second over data ranks (`Ranks.total`).
    """
    device = model.lm_head.weight.device
    one = torch.ones((), device=device)
    total, mass = torch.zeros_like(one), torch.zeros_like(one)
    for row in batches:
        batch, context = row if isinstance(row, tuple) else (row, None)
        loss = model(batch, one, loss_per=loss_per, run_layer=run_layer, context=context)
        loss.backward()
        total += loss.detach()
        mass += sqrt_mass(batch.labels_T, batch.cu_seqlens, per=loss_per)
    return total, mass
