"""Numbers of the paper, checked by their averages."""

from eagle_model.evaluate.published import PUBLISHED

IMAGES = {
    "docvqa": "anls", "chartqa": "accuracy", "infovqa": "anls", "textvqa": "accuracy", "ocrbench": "points",
    "mmstar": "accuracy", "realworldqa": "accuracy", "ai2d": "accuracy", "mmmu": "accuracy", "mmbench": "accuracy",
    "mmvet": "accuracy", "hallusionbench": "average", "mathvista": "accuracy",
}  # fmt: skip


def test_the_image_columns_average_to_what_the_paper_says() -> None:
    averages = {
        "Eagle2.5-8B": 75.6,
        "Qwen2.5-VL-8B": 75.6,
        "InternVL2.5-8B": 73.1,
        "GPT-4o": 74.9,
        "Gemini-1.5-Pro": 71.7,
    }
    for model, average in averages.items():
        values = [PUBLISHED[task][number][model] / (10 if task == "ocrbench" else 1) for task, number in IMAGES.items()]
        assert abs(sum(values) / len(values) - average) < 0.06, model
