"""Video files: `open` says what is in one and chooses frames, `decode` gives the frames shown at given times.

from eagle_kernels import video
film = video.open("walk.mp4")
film.info.duration_seconds                # 4.8
frames = [frame.rgb_YX3 for frame in film.frames([0.0, 1.0, 2.0])]
"""

from eagle_kernels.video.info import Frame, VideoError, VideoInfo
from eagle_kernels.video.video import Video, decode, open, probe

__all__ = ["Frame", "Video", "VideoError", "VideoInfo", "decode", "open", "probe"]
