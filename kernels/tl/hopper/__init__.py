"""Dense convolution on Hopper, in Gluon, which needs Triton 3.8 or a pack; entered by the Triton backend."""
