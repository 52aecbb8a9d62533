"""Measurements of this library beside torch's; entered by the command line. A wheel has it as ``gpuconv.bench``."""
