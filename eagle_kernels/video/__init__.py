"""Video files: `probe` says what is in one, `decode` gives the frames shown at given times."""

from eagle_kernels.video.decode import decode
from eagle_kernels.video.info import Frame, VideoError, VideoInfo
from eagle_kernels.video.probe import probe

__all__ = ["Frame", "VideoError", "VideoInfo", "decode", "probe"]
