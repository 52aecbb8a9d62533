"""The command line, which callers enter by ``gpuconv`` or ``python -m gpuconv``; needs the ``cli`` extra."""
