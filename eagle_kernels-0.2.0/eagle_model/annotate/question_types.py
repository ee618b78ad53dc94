"""The 63 types of questions that the paper asks about clips (its Table 12), and a random choice of them.

draw("films/a.mp4 0", 5, seed=0, without=PERSONAL)      # the same 5 in every run
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection

_TABLE = """
object_recognition object_properties object_count object_state object_location object_presence
human_attributes human_pose human_appearance human_identity human_cognitive_process human_location human_emotion
scene_description text_recognition text_count text_location
single_object_event_recognition single_object_event_count single_object_state_change
single_object_quantity_change single_object_location_change single_object_trajectory single_object_speed
single_object_presence_change
human_object_interaction_recognition human_object_interaction_count human_human_interaction_recognition
object_interaction abnormal_event_detection
domain_medical domain_education domain_sports domain_movies domain_gaming domain_technology domain_arts
video_editing_effects camera_movement
spatial_relationship property_comparison quantity_comparison state_comparison human_object_relationship
human_human_relationship scene_sequence event_sequence event_causality counterfactual_reasoning
trajectory_tracking speed_comparison event_prediction anomaly_reasoning planning navigation human_action
dialogue_content event_summary object_ordering event_location process_description video_topic anomaly_recognition
"""
TYPES = tuple(_TABLE.split())
PERSONAL = ("human_identity",)  # who a person is: nobody in a film was asked


def draw(name: str, number: int, *, seed: int, without: Collection[str] = PERSONAL) -> list[str]:
    """`number` different types, by `name` and seed alone, in the table's order."""
    left = [t for t in TYPES if t not in without]
    chosen = stable_random(seed, name).sample(left, min(number, len(left)))
    return sorted(chosen, key=TYPES.index)


def stable_random(seed: int, *names: object) -> random.Random:
    """A generator that is the same in every run and process for the same seed and names."""
    text = "\n".join(map(str, (seed, *names)))
    return random.Random(hashlib.sha256(text.encode()).digest())
