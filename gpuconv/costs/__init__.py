"""How long a launch takes: what it does, a model of the GPU, and measured times; entered by backends and up."""
