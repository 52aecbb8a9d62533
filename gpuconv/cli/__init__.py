"""The command line, entered by callers as ``gpuconv`` or ``python -m gpuconv``; needs the ``cli`` extra."""
