"""Dense convolution on Hopper, in Gluon: TMA, wgmma, specialised warps. Needs Triton 3.8, or a pack."""
