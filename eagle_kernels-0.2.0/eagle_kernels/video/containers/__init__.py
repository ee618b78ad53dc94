"""Container files read without libav: when each frame is shown, where its bytes lie, where a decoder may start."""
