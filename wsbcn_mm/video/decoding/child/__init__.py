"""What a decoding process runs: standard library, numpy, decord and PyAV only, so that it starts in half a second.

`python wsbcn_mm/video/decoding/child` is that process (`__main__.py`); `readers` serves the main process too.
"""
