"""Measurements of this library beside torch's; a wheel has this folder as ``gpuconv.bench``, for ``gpuconv bench``."""
