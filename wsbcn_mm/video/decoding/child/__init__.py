"""Program of the decoding process: only the standard library, numpy, decord and PyAV, so it starts in half a second.

`python wsbcn_mm/video/decoding/child` runs it (`__main__.py`). The main process uses `readers` too.
"""
