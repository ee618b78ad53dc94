"""A trained model at work: answers to questions about images and videos."""

from eagle_model.infer.assistant import Assistant

__all__ = ["Assistant"]
