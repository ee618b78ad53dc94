"""libav, by way of PyAV: the one folder that imports it. The rest of the package works without, and imports this late.

A planned video goes through here so: `index` reads it once; `workers` take the plan's groups of pictures, each with a
`reader`, which feeds a decoder from a `source` of packets, leaves out what `drops` found safe to leave out, and hands
over a `picture` for each wanted frame. `container` opens files for all of them.
"""

try:
    import av  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError('eagle_kernels.video needs PyAV: `pip install "eagle-kernels[video]"`.') from error
