r"""Prompt layouts: what is written around images, videos and their frames, tools and thoughts. Named, versioned data.

    template = TEMPLATES["training-1"]
    written(template, SampledVideo((0.0, 0.5), 2.0), number=1, picture=1, is_only=False, tokens_per_tile=256)
    # [("The first video of 1.00 seconds at 2.00 fps: Frame 1: ", 256), ("Frame 2: ", 256)], then "\n"

Eagle 2.5 was released with three layouts, which differ; a model answers best in the one that it was tuned with. A name
ends in its version: a layout that checkpoints were saved with is never changed, a new one gets the next number.

processor-1   the processor published with nvidia/Eagle2.5-8B, for inference. The default.
training-1    the published training code. Its data preparation took the fps of a clip from the whole file's length; we
              take the clip's. (`<image k>` comes only where the sample has more than one image.)
demo-1        the published TensorRT demo: numbers count images and frames alike, and one lone picture has none.

All three are ChatML, and one rule holds for them: a turn's text is stripped once media are in their places, so a
newline that a layout puts after an image is gone where the turn ends; where text follows, one newline at its start
counts as that newline, so that LLaVA's "<image>\nWhat?" has one.

Source  arXiv:2504.15271 (text of frames); the processor of nvidia/Eagle2.5-8B; the training and deployment code
        published with it. Tools: the chat template of Qwen2.5, whose words the language model has learned.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, NamedTuple

from eagle_model.data.tiling import Grid

TURN_START, TURN_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
DEFAULT_SYSTEM = "You are a helpful assistant."
TRAINING_SYSTEM = "You are an AI assistant whose name is Eagle-Next."
NO_THINK = "/nothink"  # at the end of a question that is to be answered without thoughts
NO_THOUGHT = "<think>\n\n</think>\n\n"  # what such an answer begins with
TOOLS_START = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
TOOLS_END = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
RESPONSE_START, RESPONSE_END = "<tool_response>\n", "\n</tool_response>"


class SampledVideo(NamedTuple):
    """What the text says of one video, or of one document, whose pages stand for frames."""

    timestamps_seconds: tuple[float, ...]  # one a frame, from the file's first shown frame; of a document, page numbers
    frames_per_second: float | None  # sampled frames a second of the clip; None: not said, as of a document
    has_times: bool = True  # whether the text says when each frame is; of a document it does not


Seen = Grid | SampledVideo  # what the model gets to see of one image, of one video


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """A layout. `{tiles}` is where `<img>...</img>` stands, `{frames}` where a video's frames do.

    Fields that the strings may have: {number} of an image, a video or a frame, from 1; {ordinal} of a video; {fps} and
    {duration} of what was sampled of it; {seconds}, the time of a frame.
    """

    system: str  # the system turn of conversations that have none
    image: str
    only_image: str  # of an image that is the only one
    counts: Literal["images", "pictures"]  # what numbers of images count, and what is the only one: frames too, or not
    video: str
    video_without_fps: str
    frame: str
    frame_without_time: str
    later_ordinal: str = "{number}"  # of the eleventh video and those after it
    ordinals: tuple[str, ...] = _ORDINALS


TemplateName = Literal["processor-1", "training-1", "demo-1"]
TEMPLATES: dict[TemplateName, Template] = {
    "processor-1": Template(
        system=DEFAULT_SYSTEM,
        image="<image {number}>{tiles}",
        only_image="<image {number}>{tiles}",
        counts="images",
        video="The {ordinal} video sampled with {fps:.2f} fps: {frames}",
        video_without_fps="The {ordinal} video: {frames}",
        frame="Frame {number} sample at {seconds:.2f}s: {tiles}",
        frame_without_time="Frame {number}: {tiles}",
        later_ordinal="{number}-th",  # the release has no word for it
    ),
    "training-1": Template(
        system=TRAINING_SYSTEM,
        image="<image {number}>{tiles}\n",
        only_image="{tiles}\n",
        counts="images",
        video="The {ordinal} video of {duration:.2f} seconds at {fps:.2f} fps: {frames}\n",
        video_without_fps="The {ordinal} video: {frames}\n",  # the release has no document
        frame="Frame {number}: {tiles}",
        frame_without_time="Frame {number}: {tiles}",
    ),
    "demo-1": Template(
        system=DEFAULT_SYSTEM,
        image="<image {number}>{tiles}\n",
        only_image="{tiles}\n",
        counts="pictures",
        video="This is a video:\n{frames}",
        video_without_fps="This is a video:\n{frames}",
        frame="Frame {number} sampled at {seconds:.2f} seconds: {tiles}\n",
        frame_without_time="Frame {number}: {tiles}\n",
    ),
}
DEFAULT_TEMPLATE: TemplateName = "processor-1"


class Written(NamedTuple):
    """One image or video as it is written: texts with runs of visual tokens after them, and the text that follows."""

    runs: list[tuple[str, int]]  # (text before <img>, visual tokens between <img> and </img>)
    end: str


def written(
    template: Template, seen: Seen, *, number: int, picture: int, is_only: bool, tokens_per_tile: int
) -> Written:
    """What stands for one image or video.

    Args:  number: its place among the images, or the videos, that the sample lists.  picture: its place among the
           pictures shown, frames counted one by one.  is_only: there is no other of what template.counts names.
    """
    if isinstance(seen, Grid):
        before, end = (template.only_image if is_only else template.image).split("{tiles}")
        label = before.format(number=number if template.counts == "images" else picture)
        return Written([(label, seen.num_tiles * tokens_per_tile)], end)
    before, end = _about_video(template, seen, number).split("{frames}")
    label, after = (template.frame if seen.has_times else template.frame_without_time).split("{tiles}")
    runs = []
    for i, seconds in enumerate(seen.timestamps_seconds, start=1):
        runs.append((before + label.format(number=i, seconds=seconds), tokens_per_tile))
        before = after
    return Written(runs, before + end)


def _about_video(template: Template, video: SampledVideo, number: int) -> str:
    named = number <= len(template.ordinals)
    ordinal = template.ordinals[number - 1] if named else template.later_ordinal.format(number=number)
    if video.frames_per_second is None:
        return template.video_without_fps.format(ordinal=ordinal, frames="{frames}")
    fps = video.frames_per_second
    duration = len(video.timestamps_seconds) / fps
    return template.video.format(ordinal=ordinal, fps=fps, duration=duration, frames="{frames}")


def tool_call(name: str, arguments: str) -> str:
    """One call of a tool, its arguments in JSON, as an assistant's text says it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def thinks(answer: str) -> bool:
    """Whether an answer begins with thoughts; an empty block of them is none."""
    start = answer.lstrip()
    return start.startswith("<think>") and not start.startswith(NO_THOUGHT.rstrip())


def chat_template(system: str, *, auto_thinking_prompt: bool) -> str:
    """A Jinja template that writes what `ChatEncoder` does, `<image-k>` and `<video-k>` standing for media.

    The processor of nvidia/Eagle2.5-8B replaces these by what "processor-1" says. `messages` and `tools` are those of
    transformers' `apply_chat_template`; arguments of tools that are a string are written as they are.

    Example: tokenizer.apply_chat_template(messages, chat_template=chat_template("", auto_thinking_prompt=False))
    """
    values = {
        "SYSTEM": system,
        "TOOLS_START": TOOLS_START,
        "TOOLS_END": TOOLS_END,
        "NO_THINK": NO_THINK,
        "NO_THOUGHT": NO_THOUGHT,
        "EMPTY_THOUGHT": NO_THOUGHT.rstrip(),
    }
    # A JSON string is a string of Jinja's too.
    lines = [f"{{%- set {name} = {json.dumps(value, ensure_ascii=False)} -%}}" for name, value in values.items()]
    lines.append(f"{{%- set AUTO_THINKING = {str(auto_thinking_prompt).lower()} -%}}")
    return "\n".join(lines) + _JINJA


_JINJA = r"""
{%- set media = namespace(images=0, videos=0) -%}
{%- set thoughts = namespace(absent=false, present=false, answers=0, open=true) -%}

{%- macro content_of(message) -%}
    {%- if message.content is string -%}
        {{- message.content -}}
    {%- elif message.content -%}
        {%- for part in message.content -%}
            {%- if part is string -%}
                {{- part -}}
            {%- elif part.type in ('image', 'image_url') or (not part.type and (part.image or part.image_url)) -%}
                {%- set media.images = media.images + 1 -%}
                {{- '<image-' ~ media.images ~ '>' -}}
            {%- elif part.type in ('video', 'video_url') or (not part.type and (part.video or part.video_url)) -%}
                {%- set media.videos = media.videos + 1 -%}
                {{- '<video-' ~ media.videos ~ '>' -}}
            {%- else -%}
                {{- part.text -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}

{%- macro answer_of(message) -%}
    {%- set said = content_of(message) -%}
    {{- said -}}
    {%- for call in message.tool_calls or [] -%}
        {%- set function = call.function if call.function else call -%}
        {{- '\n' if said or not loop.first -}}
        {{- '<tool_call>\n{"name": "' ~ function.name ~ '", "arguments": ' -}}
        {{- function.arguments if function.arguments is string else function.arguments | tojson -}}
        {{- '}\n</tool_call>' -}}
    {%- endfor -%}
{%- endmacro -%}

{%- macro tools_text() -%}
    {%- if tools -%}
        {{- TOOLS_START -}}
        {%- for tool in tools -%}
            {{- '\n' -}}
            {{- tool | tojson -}}
        {%- endfor -%}
        {{- TOOLS_END -}}
    {%- endif -%}
{%- endmacro -%}

{%- set has_system = messages and messages[0].role == 'system' -%}
{%- set turns = messages[1:] if has_system else messages -%}
{%- set system = (content_of(messages[0]) if has_system else SYSTEM) ~ tools_text() -%}
{%- if has_system or system -%}
    {{- '<|im_start|>system\n' ~ system | trim ~ '<|im_end|>\n' -}}
{%- endif -%}

{%- for message in turns -%}
    {%- if message.role == 'tool' -%}
        {{- '<|im_start|>user\n' if loop.first or turns[loop.index0 - 1].role != 'tool' else '\n' -}}
        {{- '<tool_response>\n' ~ content_of(message) ~ '\n</tool_response>' -}}
        {{- '<|im_end|>\n' if loop.last or turns[loop.index0 + 1].role != 'tool' -}}
    {%- elif message.role == 'assistant' -%}
        {%- set said = answer_of(message) -%}
        {%- if thoughts.absent and not (said | trim).startswith(EMPTY_THOUGHT) -%}
            {%- set said = NO_THOUGHT ~ said -%}
        {%- endif -%}
        {{- '<|im_start|>assistant\n' ~ said | trim ~ '<|im_end|>\n' -}}
    {%- else -%}
        {%- set said = content_of(message) -%}
        {%- if AUTO_THINKING and message.role == 'user' -%}
            {%- set thoughts.present = false -%}
            {%- set thoughts.answers = 0 -%}
            {%- set thoughts.open = true -%}
            {%- for later in turns[loop.index:] -%}
                {%- if later.role == 'user' -%}
                    {%- set thoughts.open = false -%}
                {%- elif later.role == 'assistant' and thoughts.open -%}
                    {%- set answer = answer_of(later) | trim -%}
                    {%- set thoughts.answers = thoughts.answers + 1 -%}
                    {%- if answer.startswith('<think>') and not answer.startswith(EMPTY_THOUGHT) -%}
                        {%- set thoughts.present = true -%}
                    {%- endif -%}
                {%- endif -%}
            {%- endfor -%}
            {%- set thoughts.absent = thoughts.answers > 0 and not thoughts.present -%}
            {%- if thoughts.absent and not (said | trim).endswith(NO_THINK) -%}
                {%- set said = said ~ NO_THINK -%}
            {%- endif -%}
        {%- endif -%}
        {{- '<|im_start|>' ~ message.role ~ '\n' ~ said | trim ~ '<|im_end|>\n' -}}
    {%- endif -%}
{%- endfor -%}
{{- '<|im_start|>assistant\n' if add_generation_prompt -}}
"""
