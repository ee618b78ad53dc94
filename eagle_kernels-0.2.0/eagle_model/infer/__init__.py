"""A trained model at work: answers to questions about images and videos."""

from eagle_model.infer.assistant import Assistant
from eagle_model.infer.engine import Engine, QueueFull, Stats
from eagle_model.infer.request import Answer, Event, Request, Shown, Usage
from eagle_model.infer.sampling import Sampling

__all__ = ["Answer", "Assistant", "Engine", "Event", "QueueFull", "Request", "Sampling", "Shown", "Stats", "Usage"]
