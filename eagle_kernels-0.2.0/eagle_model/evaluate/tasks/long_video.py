"""Benchmarks of long videos: Video-MME, MLVU, LongVideoBench, LVBench, HourVideo, CG-Bench. TASKS is the table.

`seen` says what each layout was learned from; what was not seen is to be checked by whoever has the files.
"""

from __future__ import annotations

from dataclasses import replace

from eagle_model.evaluate.task import BY_COLUMNS, LONG, Submission, Task

_LMMS = "lmms-eval at 75571cf"
_VLM = "VLMEvalKit at e8e78f0"

_VIDEOMME = Task(
    name="videomme",
    title="Video-MME, without subtitles",
    source="lmms-lab/Video-MME, a data set of Hugging Face: its parquet, its zips unpacked to data/ and subtitle/",
    revision=BY_COLUMNS,
    seen=f"{_LMMS}, tasks/videomme",
    files={"test": ("videomme/test-*.parquet",)},
    columns={
        "videoID": "str", "question_id": "str", "duration": "str", "domain": "str", "sub_category": "str",
        "task_type": "str", "question": "str", "options": "list[str]", "answer": "str",
    },
    id="{question_id}",
    options="options",
    video="data/{videoID}.mp4",
    subtitle_file="subtitle/{videoID}.srt",
    max_frames=512,
    score="letter",
    groups=("duration", "domain", "sub_category", "task_type"),
)  # fmt: skip

_MLVU_FILES = (
    "1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning", "8_sub_scene",
    "9_summary",
)  # fmt: skip
_MLVU = Task(
    name="mlvu_choice",
    title="MLVU, questions with options",
    source="MLVU/MVLU, a data set of Hugging Face",
    revision=BY_COLUMNS,
    seen=f"{_VLM}, dataset/mlvu.py",
    files={
        "dev": tuple(f"json/{name}.json" for name in _MLVU_FILES[:7]),
        "test": ("test_multi_choice_tasks.json",),  # its videos lie beside it; labels were published later
    },
    columns={"video": "str", "duration": "float", "question": "str", "candidates": "list[str]", "answer": "str",
             "question_type": "str"},
    id="{_file}/{video}/{question}",
    options="candidates",
    answer_is="option",
    folders={name: f"video/{name}" for name in _MLVU_FILES} | {"test_multi_choice_tasks": "video"},
    video="{_folder}/{video}",
    score="letter",
    total="mlvu",
    groups=("question_type",),
    keep=("question_type",),
)  # fmt: skip

_LONGVIDEOBENCH = Task(
    name="longvideobench",
    title="LongVideoBench, without subtitles",
    source="longvideobench/LongVideoBench, a gated data set of Hugging Face: videos/ and subtitles/ unpacked",
    revision="not pinned: gated",
    seen=f"{_LMMS}, tasks/longvideobench; {_VLM}, dataset/longvideobench.py",
    files={"val": ("lvb_val.json",), "test": ("lvb_test_wo_gt.json",)},
    columns={
        "id": "str", "video_path": "str", "question": "str", "candidates": "list[str]", "correct_choice": "int",
        "subtitle_path": "str", "starting_timestamp_for_subtitles": "float", "duration": "float",
        "duration_group": "int", "question_category": "str",
    },
    id="{id}",
    options="candidates",
    answer="correct_choice",
    answer_is="index",
    video="videos/{video_path}",
    subtitle_file="subtitles/{subtitle_path}",
    subtitle_start="starting_timestamp_for_subtitles",
    score="letter",
    groups=("duration_group", "question_category"),
    submission=Submission(file="longvideobench_test.json", shape="dict", says="letter"),
)  # fmt: skip

_LVBENCH = Task(
    name="lvbench",
    title="LVBench",
    source="THUDM/LVBench, a data set of Hugging Face; videos from YouTube, named by `key`",
    revision="not pinned: the file is read by its columns",
    seen=f"{_LMMS}, tasks/lvbench, which has a copy with other columns; the official JSON Lines by its description",
    files={"test": ("video_info.meta.jsonl",)},
    columns={"key": "str", "qa": "list of {uid, question, answer, question_type}"},
    each="qa",
    id="{uid}",
    video="videos/{key}.mp4",
    prompt="{question}\nAnswer with the letter of the right option alone.",  # the options stand in the question
    answer_is="text",
    score="letter",
    groups=("question_type",),
)

_HOURVIDEO = Task(
    name="hourvideo",
    title="HourVideo",
    source="HourVideo/HourVideo, v1.0_release/json; videos of Ego4D, by agreement",
    revision="v1.0, the canary string of whose file must stay in it",
    seen="keshik6/HourVideo README.md at 1ac83c2, which names the file; the members of it not verified",
    files={"dev": ("v1.0_release/json/dev_v1.0_annotations.json",), "test": ("v1.0_release/json/test_v1.0*.json",)},
    columns={"benchmark_dataset": "list of {qid, task, question, answer_1 .. answer_5, correct_answer_label}"},
    members=True,
    each="benchmark_dataset",
    id="{qid}",
    options=("answer_1", "answer_2", "answer_3", "answer_4", "answer_5"),
    answer="correct_answer_label",
    video="videos/{_name}.mp4",
    score="letter",
    groups=("task",),
    submission=Submission(file="hourvideo_test.json", shape="dict", says="letter"),
)

_CGBENCH = Task(
    name="cgbench_long",
    title="CG-Bench, whole films",
    source="CG-Bench/CG-Bench, a gated data set of Hugging Face: its zips unpacked",
    revision="not pinned: gated",
    seen=f"{_LMMS}, tasks/cgbench; {_VLM}, dataset/cgbench.py",
    files={"full": ("cgbench.json",), "mini": ("cgbench_mini.json",)},
    columns={
        "qid": "int", "video_uid": "str", "duration": "float", "domain": "str", "sub_category": "str",
        "question": "str", "choices": "list[str]", "right_answer": "str", "answer": "str",
        "clue_intervals": "list[[start, end]]",
    },
    id="long/{qid}",
    options="choices",
    answer="right_answer",
    video="cg_videos_720p/{video_uid}.mp4",
    subtitle_file="cg_subtitles/{video_uid}.srt",
    score="letter",
    groups=("domain", "sub_category"),
    keep=("qid",),
)  # fmt: skip
_SECONDS = (
    "{question}\n{options}\nDo not answer the question. Say in which parts of the video, in seconds, one sees what "
    'answers it: one to five, as JSON: {{"result": [[start, end], [start, end]]}}'
)


TASKS: tuple[Task, ...] = (
    _VIDEOMME,
    replace(
        _VIDEOMME, name="videomme_subtitles_block", title="Video-MME, all subtitles before the question",
        subtitles="block",
    ),
    replace(
        _VIDEOMME, name="videomme_subtitles_frames", title="Video-MME, the subtitles at the frames shown",
        subtitles="frames",
    ),
    _MLVU,
    replace(
        _MLVU,
        name="mlvu_generation",
        title="MLVU, answers that are judged",
        files={
            "dev": tuple(f"json/{name}.json" for name in _MLVU_FILES[7:]),
            "test": ("test_generation_tasks.json",),
        },
        columns={"video": "str", "question": "str", "answer": "str", "question_type": "str",
                 "scoring_points": "list[str]"},
        options="",
        answer_is="text",
        folders={name: f"video/{name}" for name in _MLVU_FILES} | {"test_generation_tasks": "video"},
        prompt=LONG,
        max_new_tokens=512,
        score="judged",
        judge="mlvu",
        keep=("question", "question_type", "scoring_points"),
    ),
    replace(_MLVU, name="mlvu", title="MLVU", parts=("mlvu_choice", "mlvu_generation")),
    _LONGVIDEOBENCH,
    replace(
        _LONGVIDEOBENCH, name="longvideobench_subtitles", title="LongVideoBench, subtitles between the frames",
        subtitles="interleaved",
    ),
    _LVBENCH,
    _HOURVIDEO,
    _CGBENCH,
    replace(
        _CGBENCH, name="cgbench_clue", title="CG-Bench, the clue alone", id="clue/{qid}",
        video="cg_clue_videos/{qid}.mp4", subtitle_file="", max_frames=32,
    ),
    replace(
        _CGBENCH, name="cgbench_grounding", title="CG-Bench, where the clue is", id="grounding/{qid}",
        answer="clue_intervals", answer_is="intervals", prompt=_SECONDS, tell_duration=True, max_new_tokens=128,
        score="clues",
    ),
    replace(
        _CGBENCH, name="cgbench_open", title="CG-Bench, open questions", id="open/{qid}", options="", answer="answer",
        answer_is="text", prompt=LONG, max_new_tokens=256, score="judged", judge="cgbench",
        keep=("qid", "question", "clue_intervals"),
    ),
    replace(
        _CGBENCH, name="cgbench", title="CG-Bench", total="cgbench",
        parts=("cgbench_clue", "cgbench_long", "cgbench_grounding", "cgbench_open"),
    ),
)  # fmt: skip
