"""An early look at what a model says: a few fixed questions, answered every so many steps into answers.jsonl.

    answers = Answers(config, processor, run, steps_done=0)
    if answers.is_due(step, is_last=False):
        answers.answer(model, step)              # a line a question; the report shows them over time

The questions are rows of an annotation file, as those of training. Where a row ends with the assistant's turn, that is
what it should say, and is shown beside what the model says. Answers are greedy, with the model in evaluation mode:
nothing draws from a generator, and training goes on as if nothing had been asked.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from eagle_model.data.annotations import json_rows
from eagle_model.data.packing import pack_row
from eagle_model.data.processor import Processor
from eagle_model.data.recipe import read_recipe
from eagle_model.data.rows import parse_sample
from eagle_model.data.sample import DataError, Sample
from eagle_model.fields import ConfigError
from eagle_model.model.eagle import Eagle
from eagle_model.train.config import TrainConfig
from eagle_model.train.precision import DTYPES
from eagle_model.train.ranks import Ranks
from eagle_model.train.step_log import StepLog

LOG = "answers.jsonl"
MAX_PROMPTS = 32  # questions: they are answered one by one, token by token, while training waits


class Answers:
    """The questions of one run."""

    def __init__(
        self,
        config: TrainConfig,
        processor: Processor,
        run_folder: Path,
        *,
        steps_done: int,
        ranks: Ranks | None = None,
    ) -> None:
        """Raises DataError when a question cannot be read or does not fit the context beside its answer, ConfigError
        when there are none, or more than MAX_PROMPTS, or the answers alone fill the context."""
        assert config.answers is not None
        self._config, self._dtype = config.answers, DTYPES[config.dtype]
        self._processor = _with_room(processor, self._config.max_new_tokens)
        samples = _read(self._config.prompts, allow_outside_root=config.data.allow_outside_root)
        self._questions = [_split(sample) for sample in samples]
        for question, _ in self._questions:
            self._processor.plan_sample(question, generation_prompt=True)
        self._log = StepLog(run_folder / LOG, steps_done=steps_done) if ranks is None or ranks.is_first else None

    def is_due(self, step: int, *, is_last: bool) -> bool:
        """Whether to ask after `step` steps."""
        return is_last or step % self._config.every_steps == 0

    def answer(self, model: Eagle, step: int) -> list[str]:
        """Asks all questions after `step` steps; logs and returns the answers. Raises OSError, DataError as above.

        All ranks ask the same, since each may have no more than its share of the weights; the first logs."""
        was_training, texts = model.training, []
        model.eval()
        try:
            for question, expected in self._questions:
                text = self._ask(model, question)
                asked = question.turns[-1].text.strip()
                line = {"step": step, "id": question.id, "asked": asked, "answer": text, "expected": expected}
                if self._log is not None:
                    self._log.write(line)
                texts.append(text)
        finally:
            model.train(was_training)
        return texts

    def _ask(self, model: Eagle, question: Sample) -> str:
        processor = self._processor
        tokens, patches_IPK = processor.load_sample(processor.plan_sample(question, generation_prompt=True))
        batch = pack_row([tokens], patches_IPK).to(model.lm_head.weight.device, dtype=self._dtype)
        encoder = processor.encoder
        (ids,) = model.generate(
            batch, max_new_tokens=self._config.max_new_tokens, stop_token_ids=encoder.stop_token_ids
        )
        return processor.tokenizer.decode(list(encoder.spoken_ids(ids)), skip_special_tokens=False)


def _with_room(processor: Processor, max_new_tokens: int) -> Processor:
    context = processor.config.sampling.context_tokens
    if max_new_tokens >= context:
        raise ConfigError(
            f"answers.max_new_tokens is {max_new_tokens}; needs less than processor.sampling.context_tokens, {context}."
        )
    sampling = replace(processor.config.sampling, context_tokens=context - max_new_tokens)
    return Processor(processor.tokenizer, replace(processor.config, sampling=sampling))


def _read(prompts: str, *, allow_outside_root: bool) -> list[Sample]:
    samples: list[Sample] = []
    for source in read_recipe(prompts):
        for path in source.annotation:
            for where, row in json_rows(path):
                if isinstance(row, DataError):
                    raise row
                if len(samples) == MAX_PROMPTS:
                    raise ConfigError(
                        f"answers.prompts is {prompts}, with more than {MAX_PROMPTS} rows; needs a few, as training "
                        "waits while they are answered. Larger sets are for validation.recipe."
                    )
                samples.append(parse_sample(row, root=source.root, where=where, allow_outside_root=allow_outside_root))
    if not samples:
        raise ConfigError(f"answers.prompts is {prompts}, which has no rows; needs a question or more.")
    return samples


def _split(sample: Sample) -> tuple[Sample, str | None]:
    """The question, and what the answer should be where the row says it."""
    last = sample.turns[-1]
    if last.role != "assistant":
        return sample, None
    if len(sample.turns) == 1:
        raise DataError(f"{sample.where}: has a turn of the assistant alone; needs a question before it.")
    return replace(sample, turns=sample.turns[:-1]), last.text
